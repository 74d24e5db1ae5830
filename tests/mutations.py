"""Mutations of the core, each with the test that must fail: `make mutations` runs them all.

A test that passes with the code broken is no test. Each entry breaks one promise in a copy of the
tree and runs one test there; `caught` means that the test failed.
"""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
COPIED = ("fmcore", "flows", "tests", "params", "dvc.yaml", "params.yaml", "pyproject.toml")


@dataclass(frozen=True)
class Mutation:
    """What is broken, where, how, and the test (pytest's node id) that has to notice."""

    what: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = [
    Mutation(
        "no lr warm-up",
        "fmcore/training/fit.py",
        "rise = min(1.0, (step + 1) / (settings.warmup + 1))",
        "rise = 1.0",
        "tests/fmcore/training/test_fit.py::test_the_learning_rate_rises_over_the_warm_up_and_falls_by_a_cosine",
    ),
    Mutation(
        "no cosine",
        "fmcore/training/fit.py",
        "return settings.lr * (rise * fall)",
        "return settings.lr * rise",
        "tests/fmcore/training/test_fit.py::test_the_learning_rate_rises_over_the_warm_up_and_falls_by_a_cosine",
    ),
    Mutation(
        "no gradient clipping",
        "fmcore/training/fit.py",
        "(longest / (norm + 1e-6)).clamp(max=1.0)",
        "torch.ones_like(norm)",
        "tests/fmcore/training/test_fit.py::test_gradients_are_clipped_to_the_norm_and_their_own_norm_is_reported",
    ),
    Mutation(
        "EMA never updated",
        "fmcore/training/fit.py",
        "for average in (state.ema, *state.powers.values()):",
        "for average in state.powers.values():",
        "tests/fmcore/training/test_train.py::test_training_lowers_the_held_out_loss_towards_the_least",
    ),
    Mutation(
        "a power average with another exponent",
        "fmcore/network/power.py",
        "** (gamma + 1))",
        "** gamma)",
        "tests/fmcore/network/test_ema.py::test_the_profile_of_a_power_average_has_its_standard_deviation",
    ),
    Mutation(
        "the raw weights compared the wrong way round",
        "fmcore/measure/averages.py",
        "cut[metric] - other[metric]",
        "other[metric] - cut[metric]",
        "tests/fmcore/measure/test_averages.py::test_differences_are_paired_cut_by_cut",
    ),
    Mutation(
        "sum in place of the mean over processes",
        "fmcore/training/processes.py",
        "        flat /= self.size\n",
        "",
        "tests/fmcore/training/test_fit.py::test_processes_average_and_do_not_add",
    ),
    Mutation(
        "every process takes the whole batch",
        "fmcore/training/processes.py",
        "x.tensor_split(self.size)[self.rank]",
        "x",
        "tests/fmcore/training/test_fit.py::test_processes_share_a_batch_without_overlap",
    ),
    Mutation(
        "a piece of a batch weighs as much as the batch",
        "fmcore/training/gradient.py",
        "weight_of = share * len(piece.t) / len(own.t)",
        "weight_of = share",
        "tests/fmcore/training/test_processes.py::test_pieces_give_the_step_of_the_whole_batch",
    ),
    Mutation(
        "a damaged file of a divided checkpoint taken for whole",
        "fmcore/training/divided.py",
        "if sha256(path / name) != stated[name]:",
        "if not (path / name).exists():",
        "tests/fmcore/training/test_divided.py::test_a_damaged_checkpoint_is_told_removed_and_the_one_before_it_taken",
    ),
    Mutation(
        "EMA not restored from a checkpoint",
        "fmcore/training/checkpoint.py",
        "        average.load_state_dict({**frozen(average), **kept})\n",
        "",
        "tests/fmcore/training/test_train.py::test_a_killed_training_resumes_bit_for_bit",
    ),
    Mutation(
        "optimiser not restored from a checkpoint",
        "fmcore/training/checkpoint.py",
        '    state.optimizer.load_state_dict({"state": slots, "param_groups": groups})\n',
        "",
        "tests/fmcore/training/test_train.py::test_a_killed_training_resumes_bit_for_bit",
    ),
    Mutation(
        "history not restored from a checkpoint",
        "fmcore/training/checkpoint.py",
        '    state.history = json.loads(note["history"])\n',
        "",
        "tests/fmcore/training/test_train.py::test_a_killed_training_resumes_bit_for_bit",
    ),
    Mutation(
        "times not stratified",
        "fmcore/training/batch.py",
        "(rising + _uniform(rows, seed, name, step)) / rows",
        "_uniform(rows, seed, name, step)",
        "tests/fmcore/training/test_batch.py::test_times_are_stratified_and_a_function_of_seed_and_step",
    ),
    Mutation(
        "the same times at each step",
        "fmcore/training/batch.py",
        "derive_seed(seed, name, step)",
        "derive_seed(seed, name)",
        "tests/fmcore/training/test_batch.py::test_times_are_stratified_and_a_function_of_seed_and_step",
    ),
    Mutation(
        "the source of a flipped pair is not flipped",
        "fmcore/training/batch.py",
        "target, source = (_flipped(x, turned) for x in (target, source))",
        "target = _flipped(target, turned)",
        "tests/fmcore/training/test_batch.py::test_a_flip_mirrors_source_and_target_of_the_same_samples",
    ),
    Mutation(
        "labels never dropped",
        "fmcore/training/batch.py",
        "label = torch.where(dropped, rules.classes, label)",
        "label = label",
        "tests/fmcore/training/test_batch.py::test_labels_are_dropped_to_the_null_class_at_the_asked_rate",
    ),
    Mutation(
        "the same source at each step",
        "fmcore/training/batches.py",
        'derive_seed(seed, "source", step)',
        'derive_seed(seed, "source")',
        "tests/fmcore/coupling/test_coupling.py::test_the_independent_coupling_is_drawn_afresh",
    ),
    Mutation(
        "every epoch in one order",
        "fmcore/training/batches.py",
        '"rows", epoch, w',
        '"rows", 0, w',
        "tests/fmcore/coupling/test_coupling.py::test_batches_of_a_coupling_larger_than_memory_see_every_pair",
    ),
    Mutation(
        "wrong sign of sigma' in the path's velocity",
        "fmcore/matching/interpolant.py",
        "return a * target + b * source, da * target + db * source",
        "return a * target + b * source, da * target - db * source",
        "tests/fmcore/matching/test_interpolant.py::test_the_velocity_is_the_slope_of_the_path",
    ),
    Mutation(
        "wrong sign in the source of a velocity",
        "fmcore/matching/conversions.py",
        "return _divided(a * velocity - da * x, a",
        "return _divided(a * velocity + da * x, a",
        "tests/fmcore/matching/test_interpolant.py::test_each_view_gives_the_others",
    ),
    Mutation(
        "the score without its minus",
        "fmcore/matching/conversions.py",
        "return -to_source(",
        "return to_source(",
        "tests/fmcore/matching/test_interpolant.py::test_score_and_velocity_of_a_gaussian_are_those_of_its_marginal",
    ),
    Mutation(
        "pseudo-Huber without its square",
        "fmcore/matching/loss.py",
        "(flat.square().sum(dim=1) + c * c).sqrt() - c",
        "flat.square().sum(dim=1)",
        "tests/fmcore/matching/test_loss.py::test_pseudo_huber_is_half_square_for_small_gaps_and_length_for_large",
    ),
    Mutation(
        "the weight of t is ignored",
        "fmcore/matching/loss.py",
        "return value * (1 / t.clamp(min=EDGE))",
        "return value",
        "tests/fmcore/matching/test_loss.py::test_weights_by_time",
    ),
    Mutation(
        "MeanFlow with the wrong sign",
        "fmcore/matching/maps.py",
        "(v - expand(span, x) * change)",
        "(v + expand(span, x) * change)",
        "tests/fmcore/matching/test_loss.py::test_the_exact_average_velocity_has_no_mean_flow_gap",
    ),
    Mutation(
        "U-shaped times are uniform",
        "fmcore/matching/times.py",
        "return (torch.asinh(c) / self.rate + 0.5).to(u.dtype).clamp(0, 1)",
        "return u",
        "tests/fmcore/matching/test_times.py::test_times_follow_the_cdf",
    ),
    Mutation(
        "Heun is Euler",
        "fmcore/solve/solver.py",
        "return x + dt / 2 * (first + v(x + dt * first, t + dt))",
        "return x + dt * first",
        "tests/fmcore/solve/test_solver.py::test_order_of_convergence",
    ),
    Mutation(
        "NFE counted per step",
        "fmcore/solve/solver.py",
        "return Solution(now, calls, ",
        "return Solution(now, solver.steps, ",
        "tests/fmcore/solve/test_solver.py::test_nfe_is_what_the_network_saw",
    ),
    Mutation(
        "one step size for a whole batch",
        "fmcore/solve/adaptive.py",
        "return x.flatten(1).double().square().mean(dim=1).sqrt()",
        "return x.double().square().mean().sqrt().expand(len(x))",
        "tests/fmcore/solve/test_adaptive.py::test_a_row_does_not_depend_on_its_batch_mates",
    ),
    Mutation(
        "churn not squared in the drift",
        "fmcore/solve/sde.py",
        "drift + h * churn**2 / 2 * g2 * score",
        "drift + h * churn / 2 * g2 * score",
        "tests/fmcore/solve/test_sde.py",
    ),
    Mutation(
        "guidance swapped",
        "fmcore/network/field.py",
        "return plain + strength(self.guidance) * (out - plain)",
        "return out + strength(self.guidance) * (plain - out)",
        "tests/fmcore/sampling/test_flow_model.py::test_guidance_extrapolates_from_the_null_class_and_counts_twice",
    ),
    Mutation(
        "guidance counted once",
        "fmcore/sampling/flow.py",
        "nfe=found.nfe + int(nulls.max())",
        "nfe=found.nfe",
        "tests/fmcore/sampling/test_flow_model.py::test_guidance_extrapolates_from_the_null_class_and_counts_twice",
    ),
    Mutation(
        "sigma(1) of the interpolant ignored",
        "fmcore/sampling/flow.py",
        "rows = self.interpolant.noise_scale * rows",
        "pass",
        "tests/fmcore/sampling/test_flow_model.py::test_every_objective_on_every_interpolant_carries_noise_to_the_data",
    ),
    Mutation(
        "the audit takes the same solver",
        "fmcore/sampling/pairs.py",
        "self.solver.refined()",
        "self.solver",
        "tests/fmcore/sampling/test_couple.py::test_the_solver_gap_is_audited_and_falls_with_the_step",
    ),
    Mutation(
        "no tiles",
        "fmcore/sampling/flow.py",
        "return replace(self, network=in_tiles(self.network, self.tile))",
        "return self",
        "tests/fmcore/network/test_network.py::test_a_solver_gives_a_network_its_one_time_for_each_row_without_copies",
    ),
    Mutation(
        "noise by the row of its shard",
        "fmcore/coupling/noise.py",
        '["key"][1] = pair\n',
        '["key"][1] = pair % 7\n',
        "tests/fmcore/coupling/test_coupling.py",
    ),
    Mutation(
        "the number of pairs in every shard",
        "fmcore/coupling/write.py",
        'exclude={"pairs"}',
        "exclude=set()",
        "tests/fmcore/sampling/test_growing.py::test_a_larger_coupling_keeps_the_full_shards_and_is_what_sampling_anew_gives",
    ),
    Mutation(
        "a shard is kept whatever pairs it holds",
        "fmcore/coupling/write.py",
        'return np.array_equal(rows["pair_id"].to_numpy(), np.arange(ids.start, ids.stop))',
        "return True",
        "tests/fmcore/sampling/test_growing.py::test_a_larger_coupling_keeps_the_full_shards_and_is_what_sampling_anew_gives",
    ),
    Mutation(
        "the name of a round in its seed",
        "flows/params/seeds.py",
        'f"rf{depth(params, round_)}"',
        "key",
        "tests/flows/params/test_seeds.py::test_a_renamed_chain_has_the_same_seeds_and_a_branch_draws_as_its_sibling",
    ),
    Mutation(
        "an alias moves within the error",
        "flows/tracking/promotion.py",
        "s.distance + math.hypot(s.error, now.error) < now.distance",
        "s.distance < now.distance",
        "tests/flows/tracking/test_registry.py::test_a_better_round_takes_the_alias_and_a_tie_leaves_it",
    ),
    Mutation(
        "sha256 unchecked by verify",
        "fmcore/coupling/verify.py",
        'if sha256(file) != shard["sha256"]:',
        "if False:",
        "tests/fmcore/coupling/test_coupling.py::test_verify_names_the_bad_shard",
    ),
    Mutation(
        "page checksums unchecked",
        "fmcore/coupling/read.py",
        "pq.ParquetFile(content, page_checksum_verification=True)",
        "pq.ParquetFile(content)",
        "tests/fmcore/coupling/test_coupling.py::test_reading_for_training_notices_a_flipped_bit",
    ),
    Mutation(
        "noise drawn again unchecked",
        "fmcore/coupling/compact.py",
        "if _digest(found[block][drawn[block]]) != hashes[str(ids[block.start])]:",
        "if False:",
        "tests/fmcore/coupling/test_compact.py::test_other_noise_than_that_of_the_pairs_is_an_error_of_one_line",
    ),
    Mutation(
        "shards that arrive unchecked",
        "fmcore/coupling/remote.py",
        "if hashed.hexdigest() != digest:",
        "if False:",
        "tests/fmcore/coupling/test_in_s3.py::test_a_shard_that_arrives_damaged_is_refused",
    ),
    Mutation(
        "no pair is held out",
        "fmcore/coupling/noise.py",
        "by % HELD_OUT_EVERY == HELD_OUT_EVERY - 1",
        "by < 0",
        "tests/fmcore/coupling/test_coupling.py",
    ),
    Mutation(
        "a biased covariance",
        "fmcore/measure/frechet.py",
        "return self.m2 / (self.n - 1)",
        "return self.m2 / self.n",
        "tests/fmcore/measure/test_metrics.py",
    ),
    Mutation(
        "the chord turned round",
        "fmcore/measure/straightness.py",
        "return (trajectory[0].double() - trajectory[-1].double())",
        "return (trajectory[-1].double() - trajectory[0].double())",
        "tests/fmcore/measure/test_metrics.py::test_straightness_on_an_euler_grid_has_its_closed_form",
    ),
    Mutation(
        "the halves of the yardstick overlap",
        "fmcore/measure/distances.py",
        "order[n : 2 * n]",
        "order[:n]",
        "tests/fmcore/measure/test_yardstick.py::test_reference_and_floor_are_disjoint_halves_of_the_data",
    ),
    Mutation(
        "the budget with the wrong sign of S",
        "fmcore/evaluate.py",
        'before - after - paths["straightness"] - loss',
        'before - after + paths["straightness"] - loss',
        "tests/fmcore/measure/test_evaluate.py::test_the_first_round_has_the_straightness_loss_and_cost_of_theory",
    ),
    Mutation(
        "drift with the wrong sign",
        "fmcore/measure/harness.py",
        "drift = real - own",
        "drift = own - real",
        "tests/fmcore/measure/test_reconstruction.py",
    ),
    Mutation(
        "the fail level of a gate ignored",
        "fmcore/verdict/gates.py",
        "if level.fail is not None and not size <= level.fail:",
        "if False:",
        "tests/fmcore/verdict/test_gates.py::test_levels",
    ),
    Mutation(
        "a failing gate does not stop its stage",
        "flows/stage/work.py",
        '        raise ReflowError("; ".join(failed))\n',
        "        print(failed)\n",
        "tests/flows/stage/test_gated.py::test_a_value_above_its_fail_level_is_refused_with_its_reason",
    ),
    Mutation(
        "drift never advised",
        "fmcore/verdict/advice.py",
        "if worse.seen:",
        "if False:",
        "tests/fmcore/verdict/test_advice.py::test_drift_stops_a_branch_before_anything_else",
    ),
    Mutation(
        "the guard lets changed inputs pass",
        "flows/stage/guard.py",
        "    if changes:\n",
        "    if False:\n",
        "tests/flows/stage/test_guard.py::test_the_error_names_what_changed",
    ),
    Mutation(
        "lineage blind to parameters",
        "flows/dag/lineage.py",
        '{"cmd": entry.cmd, "params": entry.params, "deps": leaves}',
        '{"cmd": entry.cmd, "deps": leaves}',
        "tests/flows/dag/test_dag.py::test_lineage_is_known_before_the_run_and_found_again_in_the_lock",
    ),
    Mutation(
        "docstrings count as code",
        "flows/project/meaning.py",
        "return [] if isinstance(node.value.value, str | EllipsisType) else [node]",
        "return [node]",
        "tests/flows/dag/test_meaning.py",
    ),
    Mutation(
        "nothing retryable",
        "flows/run/schedule.py",
        "return isinstance(error, StageFailed) and error.retryable",
        "return False",
        "tests/flows/run/test_flow.py::test_branches_run_side_by_side_and_a_failure_blocks_only_its_dependents",
    ),
]


def caught(mutation: Mutation) -> bool:
    """Break a copy of the tree and say whether the test fails there."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        folder = Path(name)
        ignored = shutil.ignore_patterns("__pycache__")
        for part in COPIED:
            source = SOURCE / part
            if source.is_dir():
                shutil.copytree(source, folder / part, ignore=ignored)
            else:
                shutil.copy(source, folder / part)
        file = folder / mutation.file
        file.write_text(file.read_text().replace(mutation.old, mutation.new))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, mutation.test], cwd=folder, capture_output=True, text=True, check=False
        )
    return done.returncode == 1


def main(chosen: list[str]) -> int:
    """Run the mutations whose description holds one of the words; all without words."""
    survived = []
    for mutation in MUTATIONS:
        if chosen and not any(word in mutation.what for word in chosen):
            continue
        found = caught(mutation)
        print(f"{'caught' if found else 'SURVIVED':>8}  {mutation.what}", flush=True)
        survived += [] if found else [mutation.what]
    print(f"{len(survived)} survived")
    return len(survived)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
