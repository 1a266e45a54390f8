"""Every row of the founding audit, and everything it missed: the test that holds it, and the test in which the published or proposed form fails."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parents[1]

GOODNESS = "models/ode/test_goodness_of_fit.py"
ODE = "models/ode/test_latent_ode.py"
RACCOON = "models/raccoon/test_raccoon.py"
CONTINUAL = "models/raccoon/test_continual.py"
MEMORY = "models/raccoon/test_replay_memory.py"
DYNAMICS = "models/raccoon/test_raccoon_dynamics.py"
FLOW = "models/raccoon/test_coupling_flow.py"
SDE = "solvers/test_sde.py"
PRIOR = "models/ode/test_prior.py"

HOLDS: Final[dict[str, tuple[str, ...]]] = {
    # the 23 findings
    "E1 norm of the slices": (f"{GOODNESS}::test_every_dtype_of_module_and_input",),
    "E2 KL divided by var_p + 1e-8": (f"{RACCOON}::test_kl_of_equal_distributions_is_zero_where_the_published_one_is_biased",),
    "E3 floor on sampling probabilities": (f"{MEMORY}::test_score_that_is_not_finite_is_refused_on_entry",),
    "X1 exp(log_s)": (f"{PRIOR}::test_a_log_scale_that_was_pushed_out_stays_finite_and_returns", f"{ODE}::test_every_parameter_learns"),
    "X2 exp(0.5 logvar)": (f"{RACCOON}::test_log_variance_pushed_anywhere_stays_finite_and_its_gradient_returns",),
    "X3 X4 exp in the KL": (
        f"{RACCOON}::test_log_variance_pushed_anywhere_stays_finite_and_its_gradient_returns",
        f"{RACCOON}::test_kl_of_equal_distributions_is_zero_where_the_published_one_is_biased",
    ),
    "X5 exp(scale) of the coupling layers": (
        f"{FLOW}::test_deep_flow_stays_finite_where_the_published_one_overflows",
        f"{FLOW}::test_thirty_two_layers_train_at_a_rate_far_too_high",
    ),
    "G1 no clipping, ODE": (
        "models/ode/test_train_ode.py::test_a_step_that_is_not_finite_is_skipped",
        "models/ode/test_train_ode.py::test_learning_rates_ten_and_a_hundred_times_too_high_still_learn",
    ),
    "G2 no clipping, log classifier": (
        "models/raccoon/test_flat_weights.py::test_update_is_bounded_where_adamw_alone_is_not",
        "models/raccoon/test_train_raccoon.py::test_published_training_does_not_learn_at_that_rate",
    ),
    "G3 no clipping, online": (f"{CONTINUAL}::test_online_learning_clips_at_a_norm_of_its_own",),
    "M1 causal mask": ("models/ode/test_attention.py::test_a_causal_mask_needs_no_large_number",),
    "I1-I8 initialisation": ("models/test_initialisation.py::test_proposed_gains_starve_the_first_layer",),
    "S1 softmax": ("models/ode/test_attention.py::test_softmax_of_large_scores_is_torchs",),
    "Q1 heads of size 0": ("models/ode/test_attention.py::test_heads_of_size_zero_are_refused_at_construction",),
    "Q2 sqrt of a negative step": (f"{SDE}::test_decreasing_grid_is_refused_where_the_published_form_gives_nan",),
    # what it missed, numerical
    "float32 only": (
        f"{GOODNESS}::test_every_dtype_of_module_and_input",
        "models/ode/test_attention.py::test_positions_in_every_dtype_are_the_rounded_float64_ones",
    ),
    "statistic times N": (
        f"{GOODNESS}::test_weight_in_a_loss_depends_on_neither_batch_nor_length",
        f"{ODE}::test_normality_at_the_start_does_not_drown_the_reconstruction",
        f"{RACCOON}::test_weight_of_the_normality_term_does_not_depend_on_the_batch",
    ),
    "statistic in float16": (f"{GOODNESS}::test_float16_product_with_n_overflows_in_the_published_form_only",),
    "statistic of a bad or empty sample": (
        f"{GOODNESS}::test_a_latent_that_is_not_finite_takes_part_in_nothing",
        f"{GOODNESS}::test_empty_sample_gives_zero_with_a_graph",
    ),
    "statistic far from the origin": (
        f"{GOODNESS}::test_a_sample_at_distance_ten_is_pulled_as_hard_as_one_at_distance_one",
        f"{GOODNESS}::test_far_latents_of_many_dimensions_are_pulled_back",
        f"{ODE}::test_far_latents_stay_finite_and_come_back",
    ),
    "clamped log-diffusion": (
        f"{DYNAMICS}::test_no_entry_is_without_gradient_at_initialisation",
        f"{DYNAMICS}::test_noise_starts_near_identity_and_not_at_its_maximum",
        f"{DYNAMICS}::test_diffusion_beyond_its_range_is_learned_back",
        f"{DYNAMICS}::test_published_form_falls_below_sigma_min_and_fails_at_zero",
        f"{DYNAMICS}::test_range_wider_than_that_of_exp_keeps_its_bounds_and_gradient",
    ),
    "unbounded Euler steps": (
        "solvers/test_ode.py::test_unstable_steps_stay_finite_forward_and_backward",
        "solvers/test_ode.py::test_many_unstable_steps_do_not_add_up_to_inf_in_float16",
        f"{SDE}::test_unstable_steps_saturate_where_the_plain_form_ends_in_nan",
    ),
    "time features in half precision": ("models/raccoon/test_time_features.py::test_naive_half_precision_angle_is_another_times",),
    "a hundred layers of the vector field": (
        f"{PRIOR}::test_gradient_reaches_the_first_of_a_hundred_layers",
        f"{PRIOR}::test_a_prior_of_a_hundred_layers_learns",
    ),
    "empty message, empty batch": (
        f"{RACCOON}::test_empty_message_is_finite_where_the_mean_of_nothing_is_nan",
        f"{RACCOON}::test_empty_batch_is_exactly_zero_with_a_graph",
    ),
    "float16 range of latents and gradients": (f"{RACCOON}::test_published_forms_leave_float16_where_these_are_pushed",),
    # what it missed, functional
    "all_reduce divides twice": ("models/ode/test_distributed.py::test_reductions_and_their_gradients",),
    "EppsPulleyCF along the wrong axis": (f"{GOODNESS}::test_characteristic_function_statistic_is_of_each_row",),
    "global_step in evaluation and twice": (
        f"{GOODNESS}::test_global_step_advances_once_a_call_in_training_only",
        f"{ODE}::test_slices_advance_once_a_training_step_and_not_in_evaluation",
    ),
    "samples from N(0, I)": ("models/ode/test_sample_ode.py::test_starts_come_from_the_learned_prior",),
    "parts that were never used": (f"{ODE}::test_every_parameter_learns",),
    "encoder that knows the end": (
        f"{ODE}::test_no_forecast_knows_what_it_forecasts",
        "models/ode/test_attention.py::test_posterior_encoder_sees_everything_and_deterministic_encoder_the_past",
    ),
    "start token is the background": ("models/ode/test_attention.py::test_start_is_no_token_of_the_alphabet",),
    "ODE loss in increments": (f"{ODE}::test_an_error_of_the_vector_field_weighs_the_same_at_every_length",),
    "reconstruction cut off from the encoder": (f"{ODE}::test_reconstruction_reaches_every_latent",),
    "evaluation on another path": (f"{RACCOON}::test_evaluation_is_deterministic_and_along_the_path_of_training",),
    "the task is undertrained": (f"{RACCOON}::test_encoder_tells_order_where_the_published_one_sees_a_bag",),
    "continual phase does nothing": (
        f"{CONTINUAL}::test_adaptation_moves_the_weights_where_the_published_one_does_nothing_measurable",
        f"{CONTINUAL}::test_learns_from_the_first_items_where_the_published_one_waits",
    ),
    "a new class is forgotten first": (f"{MEMORY}::test_new_group_keeps_its_share_however_unsure_it_is",),
    "one score for a batch, batches kept alive": (
        f"{CONTINUAL}::test_every_message_has_its_own_score_and_its_own_storage",
        f"{MEMORY}::test_kept_row_does_not_keep_its_batch_alive",
    ),
    "adaptation_rate without effect": (f"{CONTINUAL}::test_rate_can_be_changed_at_any_time",),
    "memory's state aliases its lists": (f"{MEMORY}::test_legacy_memory_is_the_published_one",),
    "drift_point 0": ("models/raccoon/test_log_data.py::test_drift_point_zero_drifts_from_the_start_and_is_ignored_as_published",),
    "data sets ignore the index": (
        "models/ode/test_sequences.py::test_the_same_index_gives_the_same_item",
        "models/raccoon/test_log_data.py::test_legacy_items_follow_the_global_generator_and_accept_any_index",
    ),
    "running accuracy over 100": (f"{CONTINUAL}::test_running_accuracy_is_over_what_there_was",),
    "unknown labels": (f"{RACCOON}::test_messages_without_a_label_teach_no_class",),
}
"""By row: what shows it, each test holding the failing form as its own control."""

ALSO: Final[dict[str, tuple[str, ...]]] = {
    "I1-I8 initialisation": ("models/test_initialisation.py::test_layers_keep_the_initialisation_of_their_own",),
    "Q2 sqrt of a negative step": (f"{SDE}::test_repeated_time_repeats_the_state_with_finite_gradients_of_the_grid",),
    "float32 only": (
        f"{ODE}::test_weights_of_every_dtype",
        f"{ODE}::test_autocast",
        f"{RACCOON}::test_loss_is_finite_and_reaches_every_parameter_in_every_dtype",
        f"{RACCOON}::test_autocast_agrees_with_float32_to_the_dtype",
        f"{RACCOON}::test_float16_stays_finite_with_any_part_pushed_out",
    ),
    "a one-token sequence": (f"{ODE}::test_short_long_and_single_sequences",),
    "continual phase does nothing": (f"{CONTINUAL}::test_adapts_to_the_drift_without_forgetting",),
    "a new class is forgotten first": (f"{CONTINUAL}::test_unsure_items_of_a_new_class_stay",),
    "scores never refreshed": (f"{CONTINUAL}::test_replayed_messages_get_their_new_scores",),
    "memory and optimizer in the state": (f"{RACCOON}::test_memory_and_optimizer_are_in_the_state_once_there_is_something",),
    "shuffling destroys the stream": ("models/raccoon/test_train_raccoon.py::test_shuffled_loader_of_a_drifting_set_is_taken_in_order",),
    "odd time_dim raises late": ("models/raccoon/test_time_features.py::test_odd_or_empty_width_is_refused_at_construction",),
    "the task is undertrained": ("models/raccoon/test_train_raccoon.py::test_trains_in_a_fraction_of_the_default_run",),
    "flow's log_det is used": (f"{RACCOON}::test_volume_of_the_flow_is_part_of_the_loss",),
    "29 tokens": ("models/ode/test_alphabet.py::test_thirty_characters_in_the_published_order",),
    "length 66": ("models/ode/test_sequences.py::test_items_are_67_tokens_of_the_published_form",),
}
"""Further tests of a row, and rows of which nothing published fails to compute."""

CONTROL: Final = re.compile(r"control|naive|plain|published|legacy|proposed|remedy", re.IGNORECASE)
"""What a test says or uses where it shows the failing form."""

CODES: Final = ["E1", "E2", "E3", "X1", "X2", "X3", "X4", "X5", "G1", "G2", "G3", "M1", "I1", "S1", "Q1", "Q2"]


@cache
def _sources(file: str) -> dict[str, str]:
    text = (TESTS / file).read_text(encoding="utf-8")
    return {node.name: ast.get_source_segment(text, node) or "" for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}


def _source(test: str) -> str:
    file, _, name = test.partition("::")
    return _sources(file).get(name, "")


@pytest.mark.parametrize("row", HOLDS)
def test_a_row_has_a_test_with_the_failing_form_beside_it(row: str) -> None:
    for test in HOLDS[row]:
        source = _source(test)
        assert "assert " in source, f"{test} is not there or asserts nothing"
        assert CONTROL.search(source.partition("(")[2]), f"{test} shows no failing form"


@pytest.mark.parametrize("row", ALSO)
def test_further_tests_are_there(row: str) -> None:
    assert all("assert" in _source(test) or "pytest.raises" in _source(test) for test in ALSO[row]), ALSO[row]


def test_every_code_has_a_row() -> None:
    covered = [code for row in HOLDS for code in re.findall(r"\b[EXGMISQ]\d\b", row)]
    assert [code for code in CODES if code not in covered] == []


def test_a_missing_test_and_one_without_a_control_are_noticed() -> None:
    assert _source("models/ode/test_attention.py::test_no_such_thing") == ""
    assert not CONTROL.search(_source("models/ode/test_attention.py::test_causal_attention_sees_no_later_position").partition("(")[2])
