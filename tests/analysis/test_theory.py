"""Figures of theorems and of the toy: their claims hold, and rest on closed forms."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from intl_transfer.analysis.batches import batch_of_spectrum, geometric, random_spectrum
from intl_transfer.analysis.trace import two_eigenvalues
from intl_transfer.cli import main
from intl_transfer.spectral import trace_loss_bound


def figure(tmp_path, *words):
    """Makes a figure's quick form; its exit status, its JSON and its main table."""
    name = words[0]
    status = main(["figure", *words, "--quick", "--out", str(tmp_path)])
    record = json.loads((tmp_path / f"{name}.json").read_text())
    table = tmp_path / f"{name}.csv"
    return status, record, pd.read_csv(table) if table.exists() else None


def test_a_batch_has_the_spectrum_it_was_asked_for():
    values = random_spectrum(12, -4.0, seed=3)
    assert values[0] == 1
    assert values[-1] == pytest.approx(1e-4)
    z = batch_of_spectrum(values, 40, seed=5).numpy()
    np.testing.assert_allclose(z.mean(1), 0, atol=1e-14)
    found = np.linalg.eigvalsh(z @ z.T / 39)[::-1]
    np.testing.assert_allclose(found, values.numpy(), rtol=1e-9)
    np.testing.assert_allclose(np.diff(np.log10(geometric(5, -8).numpy())), -2)


def test_maps_are_those_of_the_closed_form(tmp_path):
    status, record, rows = figure(tmp_path, "maps")
    assert status == 0
    assert len(record["claims"]) == 4
    x = rows["x"].to_numpy()
    np.testing.assert_allclose(rows["h_1"], x * (1.5 - 0.5 * x) ** 2, rtol=1e-5)
    np.testing.assert_allclose(rows["p = 1.5"], x**-2.0, rtol=1e-4)
    assert [f"h_{t}" in rows for t in (1, 11, 12)] == [True, True, False]


def test_theorem_1_holds_on_random_spectra_of_both_axes(tmp_path):
    status, record, rows = figure(tmp_path, "theorem1")
    assert status == 0
    assert set(rows["axis"]) == {"channel", "batch"}
    assert rows[rows["T"] <= 9]["error"].max() < 1e-10
    assert record["summary"]["largest_error"] == pytest.approx(rows["error"].max(), rel=1e-4)


def test_theorem_2_by_descent_and_where_it_is_flat(tmp_path):
    status, record, _ = figure(tmp_path, "theorem2")
    assert status == 0
    ends = record["summary"]
    for t in (1, 4):
        for lg in (-3, -6):
            end = ends[f"T={t} from lg {lg}"]
            assert abs(end["lg_condition"]) < 0.005
            assert end["loss"] == pytest.approx(trace_loss_bound(16, t), abs=1e-6)
    assert all(-2 < ends[f"T=9 from lg {lg}"]["lg_condition"] < -1 for lg in (-3, -6))
    assert ends["gradient_outside_the_span"] < 1e-13


def test_the_landscape_is_the_closed_form_of_two_eigenvalues():
    pairs = torch.tensor([[1.0, 1.0], [0.3, 0.9], [5.0, 0.01]], dtype=torch.float64)
    share = (pairs / pairs.sum(1, keepdim=True)).numpy()
    expected = ((1 - share * (1.5 - 0.5 * share) ** 2) ** 2).sum(1)
    np.testing.assert_allclose(two_eigenvalues(pairs, 1).numpy(), expected, rtol=1e-10)


def test_free_batches_reach_the_floor(tmp_path):
    status, _, rows = figure(tmp_path, "floor")
    assert status == 0
    reached = rows[(rows["kind"] == "descended") & (rows["N"] == 16) & (rows["T"] == 4)]
    x = 1 / 16
    f = 1.0
    for _ in range(4):
        f = 1.5 * f - 0.5 * x * f**3
    assert reached["trace_loss"].item() == pytest.approx(16 * (1 - x * f * f) ** 2, abs=1e-4)


def test_the_direct_iteration_fails_from_nine_where_the_stable_one_does_not(tmp_path):
    status, record, rows = figure(tmp_path, "divergence")
    assert status == 0
    late = rows[(rows["T"] >= 9) & (rows["leading"] >= 0.5)]
    direct, stable = (late[late["stable"] == kind]["error"] for kind in (False, True))
    assert (direct.isna() | (direct > 1)).all()
    assert direct.isna().any()
    assert stable.max() < 1e-3
    assert 10 <= record["summary"]["direct_nan_from_T_leading_0.9"] <= 14


def test_a_claim_that_does_not_hold_is_an_exit_status_of_one(tmp_path, capsys):
    assert figure(tmp_path, "divergence", "fails_from=2", "leading=[0.5]")[0] == 1
    assert "DOES NOT HOLD: 50% in one direction" in capsys.readouterr().out


@pytest.mark.slow
def test_the_toy_collapses_without_whitening_and_spreads_with_it(tmp_path):
    status, record, rows = figure(tmp_path, "toy")
    assert status == 0, record["claims"]
    ranks = rows.groupby("variant")["effective_rank_z_hat"]
    assert ranks.median()["p = 0"] < 1.5
    assert ranks.min()["p = 0.5"] > 1.9
    assert ranks.min()["T = 4, trace loss"] > 1.8
    assert set(rows[rows["variant"] == "p = 0, plain distance"]["end"]) == {"point"}
    assert (tmp_path / "toy.gif").read_bytes()[:6] == b"GIF89a"
    ends = pd.read_csv(tmp_path / "toy_summary.csv").set_index("variant")
    counted = pd.crosstab(rows["variant"], rows["end"])
    assert (ends.loc[counted.index, counted.columns] == counted).all(axis=None)
    medians = rows.groupby("variant")[["condition_z", "condition_z_hat"]].median()
    assert np.allclose(ends.loc[medians.index, medians.columns], medians, rtol=1e-4)
