"""Folders of runs without training, for whoever reads many of them."""

import json
from pathlib import Path
from typing import Any


def write_run(results: Path, model: str = "er", seed: int = 0, finished: bool = True, **facts: Any) -> Path:
    """A run's folder with a run.json and, of a finished one, a result.yaml; `facts` replace what it says."""
    dataset, setting = facts.get("dataset_name", "seq-digits"), facts.get("setting", "class-il")
    kept = {
        "model_name": model,
        "dataset_name": dataset,
        "setting": setting,
        "n_tasks": 2,
        "seed": seed,
        "config": {"model": model, "dataset": dataset, "seed": seed, "debug_mode": False, "validation": 0.0},
        "origins": {},
        "score": "accuracy",
        "tasks": {},
        "notes": {},
        "environment": {"code": "c0de", "data": "da7a", "device": "cpu", "commit": "abcdef0"},
        "published": None,
        "parameters": 100,
        "matrices": {"class-il": [[90.0, None], [60.0, 80.0]]},
        "costs": {
            "seconds": 2.0, "seconds_training": 1.5, "cpu_seconds_training": 1.4, "seconds_evaluating": 0.5,
            "cpu_seconds_evaluating": 0.4, "inference_seconds_per_1000": 0.01, "flops_training": 10**9,
            "flops_inference": 10**6, "parameters": 100, "bytes_parameters": 400, "bytes_buffer": 800,
            "bytes_teachers": 0, "bytes_statistics": 0, "peak_memory_bytes": 10**8,
        },
        "group": None,
        "metrics": {"class-il": {"acc": 70.0, "forgetting": 30.0}},
        "iterations": 100,
        "reason": None,
        **facts,
    }  # fmt: skip
    kept["config"] |= {"model": model, "seed": seed}
    folder = results / setting / dataset / model / f"20260101-000000-000_seed{seed}_{facts.get('digest', '0')}"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(kept))
    if finished:
        (folder / "result.yaml").write_text("scores: '0'\n")
    return folder
