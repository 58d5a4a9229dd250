from pathlib import Path
from typing import Any

import numpy as np
import pytest

import core.samplers.admission
from core.samplers.admission import Source, admit
from core.samplers.budget import Budget
from core.samplers.settings import PlanConfig

DURATIONS = np.array([3.0, 0.5, 12.0, 31.0, 9.0, 0.2, 45.0, 30.0], np.float32)


def rules(**changes: Any) -> Budget:
    return PlanConfig(**{"micro_batches_per_step": 4, "max_duration_s": 30.0, "min_cut_s": 1.0, **changes}).budget


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core.samplers.admission, "_BLOCK", 3)


def test_skip_leaves_out_and_counts() -> None:
    admitted = admit(Source("a", DURATIONS), rules(over_budget="skip"))
    rows, durations = admitted.rows_and_lengths(np.arange(admitted.num))
    assert rows.tolist() == [0, 2, 4, 7]
    assert durations.tolist() == [3, 12, 9, 30]
    assert (admitted.num_too_short, admitted.num_over_budget) == (2, 2)
    assert (admitted.total_length, admitted.longest) == (54, 30)


def test_crop_counts_the_cropped_length() -> None:
    admitted = admit(Source("a", DURATIONS), rules(over_budget="crop"))
    rows, durations = admitted.rows_and_lengths(np.arange(admitted.num))
    assert rows.tolist() == [0, 2, 3, 4, 6, 7]
    assert durations.tolist() == [3, 12, 30, 9, 30, 30]
    assert (admitted.total_length, admitted.longest, admitted.crop_length) == (114, 30, 30)


def test_alone_keeps_the_length() -> None:
    admitted = admit(Source("a", DURATIONS), rules(over_budget="alone"))
    rows, durations = admitted.rows_and_lengths(np.arange(admitted.num))
    assert rows.tolist() == [0, 2, 3, 4, 6, 7]
    assert durations.tolist() == [3, 12, 31, 9, 45, 30]
    assert (admitted.num_over_budget, admitted.longest) == (2, 30)


def test_error_names_source_row_and_choices() -> None:
    with pytest.raises(ValueError, match=r"source 'a' row 3 \(and 1 more\): 31 s is over budget") as error:
        admit(Source("a", DURATIONS), rules())
    assert "plan.max_duration_s allows 30 s" in str(error.value)
    assert "crop, alone or skip" in str(error.value)
    with pytest.raises(ValueError, match=r"row 3: 31 s is over budget, plan.max_cut_s allows 15 s; raise it"):
        admit(Source("a", DURATIONS[:5]), rules(max_cut_s=15.0))


def test_all_rows_admitted_needs_no_memory() -> None:
    admitted = admit(Source("a", DURATIONS), rules(max_duration_s=50.0, min_cut_s=0.0))
    assert admitted.kept is None
    assert admitted.rows_and_lengths(np.array([6, 1]))[0].tolist() == [6, 1]


def test_a_cut_exactly_at_the_limit_is_within_it() -> None:
    durations = np.array([15.6, 2.1], np.float32)  # as float32 above 15.6 and below 2.1
    assert admit(Source("a", durations), rules(max_cut_s=15.6, min_cut_s=2.1)).num == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_impossible_durations_are_named(bad: float) -> None:
    durations = DURATIONS.copy()
    durations[4] = bad
    with pytest.raises(ValueError, match="source 'a' row 4: a duration must be positive and finite"):
        admit(Source("a", durations), rules(over_budget="skip"))


def test_a_source_with_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'a' has no cut to draw: 8 rows, 7 shorter .* 1 longer"):
        admit(Source("a", DURATIONS), rules(min_cut_s=44.0, max_duration_s=44.5, over_budget="skip"))
    with pytest.raises(ValueError, match="'a' has no rows"):
        admit(Source("a", DURATIONS[:0]), rules())


def test_memory_mapped_fields_of_an_index_are_read_in_place(tmp_path: Path) -> None:
    index = np.zeros(8, [("offset", "<i8"), ("duration_s", "<f4")])
    index["duration_s"] = DURATIONS
    np.save(tmp_path / "index.npy", index)
    mapped = np.load(tmp_path / "index.npy", mmap_mode="r")
    admitted = admit(Source("a", mapped["duration_s"]), rules(over_budget="skip"))
    plain = admit(Source("a", DURATIONS), rules(over_budget="skip"))
    assert admitted.checksum == plain.checksum
    assert admitted.rows_and_lengths(np.arange(4))[1].tolist() == plain.rows_and_lengths(np.arange(4))[1].tolist()
