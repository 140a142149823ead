"""What a run says of its speed."""

import torch
from accelerate import Accelerator

from training.engine import log


def test_the_meter_tells_what_the_loader_took(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(log.time, "perf_counter", lambda: now)

    def loader():
        nonlocal now
        for _ in range(4):
            now += 3.0
            yield "batch"

    meter = log.Meter(Accelerator(cpu=True), tmp_path)
    for step, _ in enumerate(meter.timed(loader()), 1):
        now += 1.0 if step <= 2 else 5.0
        meter.add(torch.tensor(float(step)), 6)
        if step % 2 == 0:
            meter.report(step, 1e-3)
    first, second = log.read_log(tmp_path)
    assert (first["waiting_for_data"], first["clips_per_second"], first["loss"]) == (0.75, 1.5, 1.5)
    assert (second["waiting_for_data"], second["clips_per_second"]) == (0.375, 0.75)
