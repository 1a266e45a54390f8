"""Every name of the original is offered by the package, by `import *`, and under the original's module name."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

import latent_drift

NAMES = """
    encode decode chars char2idx idx2char vocab_size SyntheticTargetDataset is_dist_avail_and_initialized all_reduce UnivariateTest
    FastEppsPulley EppsPulleyCF SlicingUnivariateTest ODE solve_ode PriorInitDistribution PriorODE DiscreteObservation PosteriorEncoder
    DeterministicEncoder AddPositionalEncoding QKVAttention TransformerBlock Predictor DeterministicLatentODE sample_sequences_ode train_ode
    TimeAwareTransform RaccoonDynamics solve_sde CouplingLayer RaccoonFlow RaccoonMemory encode_log decode_log LogDataset
    RaccoonLogClassifier train_raccoon_classifier continuous_learning_phase LOG_CATEGORIES NUM_LOG_CLASSES log_chars log_char2idx
    log_idx2char log_vocab_size
""".split()


@pytest.mark.parametrize("name", NAMES)
def test_name_resolves(name: str) -> None:
    assert name in latent_drift.__all__
    assert name in dir(latent_drift)
    assert getattr(latent_drift, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="train_odd"):
        latent_drift.train_odd  # noqa: B018


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_loads_no_torch() -> None:
    assert run("import sys, latent_drift; print('torch' in sys.modules)") == "False"


def test_star_import_and_both_aliases_run_a_script_written_for_the_original() -> None:
    script = """
        import sys, latent_drift
        latent_drift.install_alias()
        latent_drift.install_alias()  # again changes nothing
        assert "torch" not in sys.modules
        from latent_drift_trajectory import *
        import latent_drift_trajectory_stable as stable
        import torch
        assert stable.encode("A").item() == 1
        model = DeterministicLatentODE(vocab_size, 8, 16, 8, num_slices=4)
        loader = torch.utils.data.DataLoader(SyntheticTargetDataset(n_samples=8), batch_size=4)
        train_ode(model, loader, n_iter=2, device=torch.device("cpu"), loss_weights=(1.0, 0.05, 1.0))
        fixed, random = sample_sequences_ode(model, 67, 2, torch.device("cpu"))
        assert (len(decode(fixed[0])), len(decode(random[0]))) == (67, 67)
        # the audited copy's name has the toolbox too
        from latent_drift_trajectory_stable import DeterministicLatentODE as same, StabilityConstants, stable_exp
        import latent_drift.stability
        assert same is latent_drift.DeterministicLatentODE
        assert stable_exp is latent_drift.stability.stable_exp
        assert {"stable_exp", "RaccoonMemory"} <= set(stable.__all__)
        assert not hasattr(stable, "no_such_name")
        from latent_drift_trajectory_stable import *
        print(StabilityMonitor.__name__)
    """
    assert run(script) == "StabilityMonitor"


def test_alias_does_not_displace_another_module() -> None:
    script = """
        import sys, types, latent_drift
        sys.modules["latent_drift_trajectory"] = original = types.ModuleType("latent_drift_trajectory")
        try:
            latent_drift.install_alias()
        except ImportError as error:
            print(error)
        assert sys.modules["latent_drift_trajectory"] is original
        assert "latent_drift_trajectory_stable" not in sys.modules
    """
    assert "latent_drift_trajectory already imported from elsewhere" in run(script)
