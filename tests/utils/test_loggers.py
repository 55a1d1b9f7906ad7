import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from tensorboard.plugins.hparams import plugin_data_pb2

from palimpsest.utils.errors import UserError
from palimpsest.utils.log.loggers import (
    ConsoleLogger,
    CSVLogger,
    ReportLogger,
    TensorBoardLogger,
    make_loggers,
)
from palimpsest.utils.log.mlflow_logger import MLflowLogger
from palimpsest.utils.log.run_file import RunFileLogger
from palimpsest.utils.log.wandb_logger import WandbLogger
from palimpsest.utils.record import Counts, Evaluation, Run

SCORES = [
    {"class-il": [90.0], "task-il": [95.0]},
    {"class-il": [60.0, 80.0], "task-il": [90.0, 97.5]},
]
SUMMARY = {"class-il": {"acc": 70.0, "forgetting": 30.0}, "task-il": {"acc": 93.75}}


def a_run(folder, scenarios=("class-il", "task-il"), n_tasks=3, **config):
    config = {"lr": 0.1, "notes": "a | b <i>", "lr_milestones": (35, 45), "buffer_size": None, **config}
    setting = scenarios[0]
    run = Run("er", "seq-mnist", setting, n_tasks, 0, config, dict.fromkeys(config, "default"), folder, folder)
    run.environment = {"torch": "2"}
    run.matrices = {name: np.full((n_tasks, n_tasks), np.nan) for name in scenarios}
    return run


def evaluate(run, loggers, task, scores, epoch=None, step=None):
    evaluation = Evaluation(100 * (task + 1) if step is None else step, task, epoch, scores)
    run.history.append(evaluation)
    for name, values in scores.items():
        if epoch is None:
            run.matrices[name][task, : len(values)] = values
    for logger in loggers:
        logger.task_evaluated(run, evaluation)


def go(run, *loggers, end=True):
    for logger in loggers:
        logger.run_started(run)
    evaluate(run, loggers, 0, SCORES[0])
    evaluate(run, loggers, 1, {"class-il": [70.0, np.nan], "task-il": [90.0, 50.0]}, epoch=0, step=150)
    evaluate(run, loggers, 1, SCORES[1])
    if end:
        for logger in loggers:
            logger.run_ended(run, SUMMARY)


def test_config_reads_back(tmp_path):
    run = a_run(tmp_path, nested={"a": np.float64(0.5), 1: (np.int64(2), [Path("x")], True)}, path=Path("x"))
    CSVLogger().run_started(run)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["options"] == {
        **{"lr": 0.1, "notes": "a | b <i>", "lr_milestones": [35, 45], "buffer_size": None},
        **{"nested": {"a": 0.5, "1": [2, ["x"], True]}, "path": "x"},
    }
    assert config["origins"]["lr"] == "default"
    assert config["environment"] == {"torch": "2"}
    assert (config["model"], config["dataset"], config["setting"]) == ("er", "seq-mnist", "class-il")


def test_files_of_a_whole_run(tmp_path):
    run = a_run(tmp_path)
    run.baselines = {"class-il": [10.0, np.nan, 12.0]}
    go(run, CSVLogger())
    head, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert head == "step,task_trained,task_evaluated,scenario,metric,value,epoch,model,dataset,seed"
    assert rows == [
        f"{row},er,seq-mnist,0"
        for row in (
            *("100,0,0,class-il,accuracy,90.0,", "100,0,0,task-il,accuracy,95.0,"),
            *(
                "150,1,0,class-il,accuracy,70.0,0",
                "150,1,0,task-il,accuracy,90.0,0",
                "150,1,1,task-il,accuracy,50.0,0",
            ),
            *("200,1,0,class-il,accuracy,60.0,", "200,1,1,class-il,accuracy,80.0,"),
            *("200,1,0,task-il,accuracy,90.0,", "200,1,1,task-il,accuracy,97.5,"),
            *(
                "200,1,,class-il,acc,70.0,",
                "200,1,,class-il,forgetting,30.0,",
                "200,1,,task-il,acc,93.75,",
            ),
        )
    ]
    assert (tmp_path / "accuracy_matrix.csv").read_text().splitlines() == [
        "scenario,after_task,task_0,task_1,task_2",
        *("class-il,0,90.0,,", "class-il,1,60.0,80.0,", "class-il,2,,,"),
        *("task-il,0,95.0,,", "task-il,1,90.0,97.5,", "task-il,2,,,"),
    ]
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["class-il"]["accuracy_matrix"] == [[90, None, None], [60, 80, None], [None] * 3]
    assert found["class-il"]["untrained"] == [10, None, 12] and found["task-il"]["untrained"] is None
    metrics = found["class-il"]["metrics"]
    assert metrics["acc"] == 70 and metrics["forgetting"] == 30 and metrics["fwt"] is metrics["bwt"] is None
    assert found["class-il"]["undefined_terms_left_out"] == {"anytime": 1, "fwt": 1}


def test_scores_keep_every_digit(tmp_path):
    value = 100 * 2 / 3
    run, logger = a_run(tmp_path, ("domain-il",)), CSVLogger()
    logger.run_started(run)
    evaluate(run, [logger], 0, {"domain-il": [np.float64(value)]})
    for name in ("metrics.csv", "accuracy_matrix.csv"):
        assert f",{value}," in (tmp_path / name).read_text()


def test_a_killed_run_keeps_its_rows_and_a_resumed_one_repeats_none(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    go(a_run(whole), CSVLogger())
    killed = a_run(cut)
    go(killed, CSVLogger(), end=False)
    assert len((cut / "metrics.csv").read_text().splitlines()) == 10

    resumed, logger = a_run(cut), CSVLogger()  # from a checkpoint after the first task: what came later is done again
    resumed.history, resumed.matrices = killed.history[:1], killed.matrices
    logger.run_started(resumed)
    for evaluation in killed.history[1:]:
        resumed.history.append(evaluation)
        logger.task_evaluated(resumed, evaluation)
    logger.run_ended(resumed, SUMMARY)
    for name in ("metrics.csv", "accuracy_matrix.csv"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_losses_are_there_while_a_run_goes_on_and_once(tmp_path):
    run, logger = a_run(tmp_path), CSVLogger()
    logger.run_started(run)
    for step, means in ((50, {"loss": 2.0}), (100, {"loss": 1.0, "penalty": 0.25}), (150, {"loss": 0.5})):
        run.losses.append((step, means, 0.1))
        logger.step(step, means, 0.1)
    rows = ["step,term,value", "50,loss,2.0", "100,loss,1.0", "100,penalty,0.25", "150,loss,0.5"]
    assert (tmp_path / "losses.csv").read_text().splitlines() == rows
    resumed = a_run(tmp_path)  # from a checkpoint at step 100
    resumed.losses = run.losses[:2]
    CSVLogger().run_started(resumed)
    assert (tmp_path / "losses.csv").read_text().splitlines() == rows[:4]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_one_line(tmp_path):
    run, logger = a_run(tmp_path), CSVLogger()
    logger.run_started(run)
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device"):
        evaluate(run, [logger], 0, SCORES[0])


def test_console_lines(tmp_path, capsys):
    go(a_run(None), ConsoleLogger())
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[:3] == [
        "task 1/3 | class-il 90.0 | task-il 95.0",
        "task 2/3 epoch 1 | class-il 70.0 | task-il 70.0",
        "task 2/3 | class-il 70.0 | task-il 93.8",
    ]
    assert lines[4].split() == ["class-il", "task-il"]
    assert [line.split() for line in lines[5:]] == [["acc", "70.00", "93.75"], ["forgetting", "30.00", "-"]]
    assert err == "" and "\x1b" not in out
    go(a_run(tmp_path), ConsoleLogger(verbose=False))
    assert capsys.readouterr().out.splitlines() == [*lines[3:], f"results: {tmp_path}"]
    run = a_run(None, ("domain-il",))  # only the tasks seen count
    evaluate(run, [ConsoleLogger()], -1, {"domain-il": [10.0, 20.0, 30.0]})
    evaluate(run, [ConsoleLogger()], 0, {"domain-il": [90.0, 20.0, 30.0]})
    assert capsys.readouterr().out.splitlines() == ["untrained | domain-il 20.0", "task 1/3 | domain-il 90.0"]


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def test_tensorboard_of_two_scenarios(tmp_path):
    logger = TensorBoardLogger()
    run = a_run(tmp_path)
    go(run, logger, end=False)
    logger.step(210, {"loss": 0.5, "replay": 0.25}, 0.1)
    logger.run_ended(run, SUMMARY)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == 1  # HParams land in the run's own event file
    found = events(tmp_path)
    scalars = set(found.Tags()["scalars"])
    assert {"class-il/acc_mean", "task-il/acc_mean", "class-il/acc_task01", "class-il/acc_task02"} <= scalars
    assert {"loss/loss", "loss/replay", "lr", "metrics/class-il/acc", "metrics/class-il/forgetting"} <= scalars
    assert [(e.step, round(e.value, 3)) for e in found.Scalars("class-il/acc_mean")] == [
        (100, 90),
        (150, 70),
        (200, 70),
    ]
    assert [e.step for e in found.Images("class-il/accuracy_matrix")] == [100, 200]
    text = found.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| lr | 0.1 | default |" in text
    assert "a \\| b &lt;i>" in text
    assert "_hparams_/session_start_info" in found.summary_metadata


def test_tensorboard_of_one_scenario_has_plain_tags_and_the_options_that_somebody_chose(tmp_path):
    run, logger = a_run(tmp_path, ("domain-il",)), TensorBoardLogger()
    run.origins |= {"lr": "command line", "buffer_size": "dataset"}
    logger.run_started(run)
    for task, scores in enumerate([[90.0, 10.0, np.nan], [60.0, 80.0]]):
        evaluate(run, [logger], task, {"domain-il": scores})
    logger.run_ended(run, {"domain-il": {"acc": 70.0}})
    found = events(tmp_path)
    assert set(found.Tags()["scalars"]) == {"acc_mean", "acc_task01", "acc_task02", "metrics/acc"}
    assert found.Scalars("acc_mean")[0].value == 90
    assert found.Tags()["images"] == ["accuracy_matrix"]
    start = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    content = plugin_data_pb2.HParamsPluginData.FromString(start).session_start_info.hparams
    assert set(content) == {"model", "dataset", "seed", "lr"} and content["model"].string_value == "er"


@pytest.mark.usefixtures("undrawn")
def test_report_at_the_end_and_live(tmp_path):
    run, page = a_run(tmp_path), tmp_path / "report.html"
    go(run, ReportLogger(), end=False)
    assert not page.exists()
    live = ReportLogger(live=True)
    go(run, live, end=False)
    assert "not finished" in page.read_text() and 'http-equiv="refresh"' in page.read_text()
    live.run_stopped(run, KeyboardInterrupt())
    assert "not finished" in page.read_text() and "refresh" not in page.read_text()
    run.seconds = 3.0
    ReportLogger().run_ended(run, SUMMARY)
    assert "not finished" not in page.read_text() and "refresh" not in page.read_text()


COUNTS = {"class-il": Counts(np.array([[3, 1], [0, 2]]), {0: (np.array([3, 2]), np.array([4, 2]))})}


def test_answers_by_class_are_kept_of_the_tasks_that_a_resumed_run_knows(tmp_path):
    run, logger = a_run(tmp_path), CSVLogger()
    run.classes, run.counts = [(7, "seven, or so"), (3, "three")], COUNTS
    logger.run_started(run)
    for task in range(2):
        evaluate(run, [logger], task, SCORES[task])
    whole = {name: (tmp_path / name).read_text() for name in ("per_class.csv", "confusion.csv")}
    assert whole["per_class.csv"].splitlines()[:3] == [
        "step,task_trained,task_evaluated,scenario,class,name,accuracy,examples",
        *('100,0,0,class-il,7,"seven, or so",75.0,4', "100,0,0,class-il,3,three,100.0,2"),
    ]
    assert whole["confusion.csv"].splitlines()[:4] == [
        "step,task_trained,scenario,class,predicted,examples",
        *("100,0,class-il,7,7,3", "100,0,class-il,7,3,1", "100,0,class-il,3,3,2"),
    ]
    run.history, again = run.history[:1], CSVLogger()
    again.run_started(run)
    assert len((tmp_path / "confusion.csv").read_text().splitlines()) == 4
    evaluate(run, [again], 1, SCORES[1])
    assert {name: (tmp_path / name).read_text() for name in whole} == whole


@pytest.mark.parametrize(
    "options, kinds",
    [
        ({}, [CSVLogger, RunFileLogger, ConsoleLogger, ReportLogger, TensorBoardLogger]),
        ({"csv_log": False}, [RunFileLogger, ConsoleLogger, ReportLogger, TensorBoardLogger]),
        ({"tensorboard": False}, [CSVLogger, RunFileLogger, ConsoleLogger, ReportLogger]),
        ({"report": "off"}, [CSVLogger, RunFileLogger, ConsoleLogger, TensorBoardLogger]),
        ({"mlflow": "local"}, [CSVLogger, RunFileLogger, ConsoleLogger, ReportLogger, TensorBoardLogger, MLflowLogger]),
        ({"wandb": "p"}, [CSVLogger, RunFileLogger, ConsoleLogger, ReportLogger, TensorBoardLogger, WandbLogger]),
        ({"disable_log": True, "mlflow": "local", "wandb": "p"}, [ConsoleLogger]),
    ],
)
def test_make_loggers(tmp_path, options, kinds):
    args = argparse.Namespace(
        **{
            "csv_log": True,
            "tensorboard": True,
            "disable_log": False,
            "non_verbose": True,
            "mlflow": None,
            "wandb": None,
            "report": "end",
            **options,
        }
    )
    loggers = make_loggers(args, a_run(tmp_path))
    assert [type(logger) for logger in loggers] == kinds
    assert not next(logger for logger in loggers if isinstance(logger, ConsoleLogger)).verbose
    assert [type(logger) for logger in make_loggers(args, a_run(None))] == [ConsoleLogger]
