"""One round of learning: what it finds can always be written down."""

from typing import Any

import numpy as np
import pytest

from freshrank import blend_step
from freshrank.blend_step import Production, learn
from tests.utility_blender.some_outcomes import TASKS, some_outcomes
from utility_blender.blend import BlenderConfig
from utility_blender.fit import Fitted
from utility_blender.gate import Decision, Rule
from utility_blender.ope_report import OpeReport
from utility_blender.policy import StaticPolicy
from utility_blender.reward import RewardConfig
from utility_blender.version import decode_version


def test_figures_that_are_not_finite_are_written_down_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    weights_T = np.array([1.0, 5.0])
    policy = StaticPolicy({"home": weights_T, "search": weights_T})

    def fit(*_: Any, **__: Any) -> Fitted:
        return Fitted(policy, {"angles": (1.0, float("nan"))})

    monkeypatch.setattr(blend_step, "fit", fit)
    report = OpeReport(num_requests=9, replayed=float("inf"), densities=1.0, negative=(), groups=())
    rule = Rule("home: lift, item inclusion", float("nan"), "above 0", "failed")
    monkeypatch.setattr(blend_step, "evaluate", lambda *_, **__: report)
    monkeypatch.setattr(blend_step, "decide", lambda *_: Decision(False, (str(rule),), (rule,)))
    production = Production(static=policy, scale_T=np.ones(2), tasks=TASKS, schema_hash="s", numeric=())
    config = BlenderConfig(reward=RewardConfig(values={"click": 1.0}))
    learned = learn(some_outcomes(300), some_outcomes(300, seed=1), None, production, config, number=1, now_ms=0)
    gate = decode_version(learned.version.encode()).gate
    assert gate["rules"][0]["value"] is None and gate["evaluation"]["replayed"] is None
    assert gate["fit"] == {"angles": [1.0, None]} and gate["reasons"] == list(learned.decision.reasons)
