#!/usr/bin/env bash
# Everything that needs a GPU, in at most 8 minutes; what matters most comes first: the tests marked `gpu` (FSDP2 on one
# among them), the same logits and tokens in every dtype, no waiting, a training run killed and resumed, compilation and
# graphs, then figures.
#
#   tests/gpu/run.sh [--cpu] [OUT]      PYTHON names the interpreter, LIMIT the seconds, PEAK_TFLOPS the GPU's in bfloat16
#
# OUT gets what each step printed, tests.xml and summary.json; the table is printed. Exit status 1 if a step failed or was
# not run. --cpu tries every step itself, with a tiny model, on a machine without a GPU.
#
# A bare machine needs the checkout, torch, torchvision, transformers, accelerate, peft and pytest. What else is imported
# can be carried there as wheels, fetched for its Python:
#   pip download -c constraints.txt --no-deps --only-binary=:all: --python-version 3.12 \
#       --platform manylinux_2_28_x86_64 -d wheels av datasets dill multiprocess
# and there:
#   python3 -m pip install --no-index --no-deps --target site wheels/*.whl
#   PYTHONPATH=$PWD/site tests/gpu/run.sh out
set -u
repository=$(cd "$(dirname "$0")/../.." && pwd)
device=cuda tiny=
if [ "${1:-}" = --cpu ]; then
  device=cpu tiny=1
  shift
fi
mkdir -p "${1:-gpu_results}"
out=$(cd "${1:-gpu_results}" && pwd)
cd "$repository" || exit
python=${PYTHON:-python3} end=$((SECONDS + ${LIMIT:-480})) peak=${PEAK_TFLOPS:-989}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
: >"$out/steps.tsv"

step() { # name, seconds at most, command ...
  local name=$1 most=$2 begin=$SECONDS code=124
  local left=$((end - SECONDS))
  shift 2
  rm -f "$out/$name.txt" # of an earlier time
  if [ $left -gt 15 ]; then
    timeout -k 5 $((left < most ? left : most)) "$@" >"$out/$name.txt" 2>&1
    code=$?
  fi
  printf '%s\t%s\t%s\n' "$name" "$code" $((SECONDS - begin)) >>"$out/steps.tsv"
}

ours() { # name, seconds at most, script, its words ...: of this folder
  local name=$1 most=$2 script=$3
  shift 3
  step "$name" "$most" "$python" "tests/gpu/$script.py" "$@" --device $device ${tiny:+--tiny}
}

benchmark() { # name, seconds at most, script, its words ...
  local name=$1 most=$2 script=$3
  shift 3
  step "$name" "$most" "$python" "tests/benchmarks/$script.py" "$@"
}

# What is right or wrong, and not timed, goes side by side where there are cores for it.
aside() {
  if [ $device = cuda ]; then "$@" & else "$@"; fi
}

# Files without such tests are left out: they import what a bare machine may lack.
mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests)
aside step tests 240 "$python" -m pytest "${files[@]}" -m gpu -q --junitxml="$out/tests.xml"
aside ours parity 180 parity
aside ours waits 120 waits
wait
ours training 180 training_run
ours compiled 150 compiled
ours forward 150 figures forward --peak_tflops "$peak"
ours step 120 figures step --peak_tflops "$peak"
if [ $device = cuda ]; then
  benchmark clip_to_label 60 clip_to_label --device cuda --dtype bfloat16 --threads 8
  benchmark training_memory 120 training_memory --device cuda --clips 16 --precisions bf16
  benchmark budgets 60 budgets --device cuda --dtype bfloat16 --batch_size 8
  benchmark pretrain_memory 120 pretrain_memory --device cuda --clips 16
  benchmark budgets_float32 60 budgets --device cuda --dtype float32 --batch_size 8
  benchmark budgets_compiled 120 budgets --device cuda --dtype bfloat16 --batch_size 8 --compile
else
  benchmark clip_to_label 60 clip_to_label --layers 1 --rounds 1 --threads 1 --budgets 256 --files "3 s of 320x240"
  benchmark training_memory 120 training_memory --models small --layers 1 --clips 1 --precisions bf16
  benchmark budgets 60 budgets --device cpu --layers 1 --rounds 1
fi

"$python" tests/gpu/summary.py "$out" $device
