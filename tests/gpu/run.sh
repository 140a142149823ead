#!/usr/bin/env bash
# Everything that needs a GPU, in at most 8 minutes: the tests marked `gpu`, then the benchmarks.
#
#   tests/gpu/run.sh [OUT]        PYTHON names the interpreter, LIMIT the seconds
#
# OUT gets what each step printed, tests.xml and summary.json; the table is printed. Exit status 1 if a step failed.
set -u
cd "$(dirname "$0")/../.."
out=${1:-gpu_results} python=${PYTHON:-python}
end=$((SECONDS + ${LIMIT:-480}))
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1
mkdir -p "$out"
: >"$out/steps.tsv"

step() { # name, command ...
  local name=$1 begin=$SECONDS code=124
  shift
  if [ $((end - SECONDS)) -gt 5 ]; then
    timeout $((end - SECONDS)) "$@" >"$out/$name.txt" 2>&1
    code=$?
  fi
  printf '%s\t%s\t%s\n' "$name" "$code" $((SECONDS - begin)) >>"$out/steps.tsv"
}

# Files without such tests are left out: they import what a bare machine may lack.
mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests)
step tests "$python" -m pytest "${files[@]}" -m gpu -q --junitxml="$out/tests.xml"
for dtype in float32 bfloat16; do
  step "budgets_$dtype" "$python" tests/benchmarks/budgets.py --device cuda --dtype $dtype --batch_size 8
done
step budgets_bfloat16_tf32 "$python" tests/benchmarks/budgets.py --device cuda --dtype bfloat16 --batch_size 8 --tf32
step training_memory "$python" tests/benchmarks/training_memory.py --device cuda --clips 8 --precisions bf16
step pretrain_memory "$python" tests/benchmarks/pretrain_memory.py --device cuda --clips 16
step budgets_compiled "$python" tests/benchmarks/budgets.py --device cuda --dtype bfloat16 --batch_size 8 --compile
step flux_multi "$python" tests/benchmarks/flux_multi_step.py --device cuda --bf16 --batch_size 8
step flux_multi_compiled "$python" tests/benchmarks/flux_multi_step.py --device cuda --bf16 --batch_size 8 --compile

"$python" tests/gpu/summary.py "$out"
