"""The picture of several runs."""

from core.report.comparison import MOST_PANELS, draw, panels


def records(*names: str) -> list[dict[str, object]]:
    train = [{"phase": "train", "step": step, "loss": 3.0 / step, "audio_s_per_s": 100.0} for step in (10, 20)]
    return [*train, {"phase": "valid", "step": 20, **dict.fromkeys(names, 0.5)}]


def test_what_two_runs_have_in_common_is_drawn() -> None:
    runs = {"a": records("valid_wer", "valid_loss"), "b": records("valid_wer"), "c": records("valid_cer")}
    assert panels(runs) == [("train", "loss"), ("valid", "valid_wer"), ("train", "audio_s_per_s")]
    many = {name: records(*(f"valid_{i}" for i in range(9))) for name in "ab"}
    assert len(panels(many)) == MOST_PANELS


def test_runs_of_all_kinds_can_be_drawn() -> None:
    runs = {"nothing yet": [], **{f"run {number}": records("valid_wer") for number in range(11)}}
    assert draw(runs).startswith(b"\x89PNG")
