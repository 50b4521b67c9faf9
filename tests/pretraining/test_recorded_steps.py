"""The training step against the recorded steps of the original: losses, logits, gradients, states."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.parity import close, sample

from configs import pretrain_r50_aspp
from cp2_jax.augment.compose import Pair
from cp2_jax.convert import names
from cp2_jax.pretraining import losses
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.runs import optim

STEPS = 4


def small_config(backbone="resnet", dtype="float32"):
    """The recorded runs' model ("How the models are configured" in the reference's README), by the original's preset."""
    config = pretrain_r50_aspp.get_config("original")
    config.update(image_size=64, batch_size=8, bn_groups=1, key_shuffle="none")
    config.model.update(backbone=backbone, dtype=dtype)
    config.model.resnet.update(width=8)
    config.model.vit.update(width=48, depth=3, heads=3)
    config.model.aspp.update(channels=16)
    config.loss.queue_size = 64
    config.optimizer.schedule = "constant"
    return config


def recorded_state(config, optimizer, run, dtype):
    """The state that the recorded run starts from."""
    prefix = "init/encoder_q."
    arrays = {k[len(prefix) :]: run[k] for k in run if k.startswith(prefix)}
    arrays = {k: v for k, v in arrays.items() if "conv_seg" not in k}  # the untrained classifier
    variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), names.variables_from_torch(arrays))
    state = pretrain_step.init_state(config, optimizer, variables)
    return state.replace(queue=jnp.asarray(run["init/queue"].T.reshape(8, 8, 128), dtype))


def recorded_pair(inputs, step, dtype):
    def to_nhwc(x):
        return jnp.asarray(x.transpose(0, 2, 3, 1), dtype)

    return Pair(
        image_query=to_nhwc(inputs[f"step{step}/image_q"]),
        image_key=to_nhwc(inputs[f"step{step}/image_k"]),
        mask_query=jnp.asarray(inputs[f"step{step}/mask_q"], dtype),
        mask_key=jnp.asarray(inputs[f"step{step}/mask_k"], dtype),
    )


def keep_gradients():
    """An optimiser stage that does nothing but remember the gradients, for looking at them."""
    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), lambda g, _s, _p=None: (g, g))


def make(config):
    schedule = optim.schedule(config.optimizer, 10, 1)
    optimizer = optax.chain(keep_gradients(), optim.make(config.optimizer, schedule))
    return optimizer, jax.jit(pretrain_step.make_update(config, optimizer, schedule))


def assert_torch_equal(kind, tree, batch_stats, recorded, tolerance):
    """Compare a params-like tree with arrays recorded under state_dict names; errors relative to each array's size."""
    ours = names.torch_from_variables({"params": tree, "batch_stats": batch_stats})
    assert recorded
    for name, value in recorded.items():
        close(kind, ours[name], value, tolerance, name)


@pytest.fixture
def seen(monkeypatch):
    """What the loss is given, step by step: (query and key features, masks, queue), under a step that is jitted."""
    kept, real = [], losses.cp2_loss

    def keep(high, low):
        kept.append([np.float64(large) + np.float64(small) for large, small in zip(high, low, strict=True)])

    def spy(*arrays, **options):
        # In two float32 parts: callbacks run in a thread of their own, where float64 is off.
        high = [x.astype(jnp.float32) for x in arrays]
        low = [(x - h.astype(x.dtype)).astype(jnp.float32) for x, h in zip(arrays, high, strict=True)]
        jax.debug.callback(keep, high, low)
        return real(*arrays, **options)

    monkeypatch.setattr(losses, "cp2_loss", spy)
    return kept


def logits_by_definition(query, key, mask_query, mask_key, bank):
    """The original's logits_moco [n, 1 + K] and logits_dense [n, query, key], in NumPy (builder.py:117-153)."""

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    n, channels = len(query), query.shape[-1]
    query, key = (unit(x.reshape(n, -1, channels)) for x in (query, key))
    pooled = [unit((x * mask.reshape(n, -1, 1)).sum(axis=1)) for x, mask in ((query, mask_query), (key, mask_key))]
    positive = (pooled[0] * pooled[1]).sum(axis=1, keepdims=True)
    moco = np.concatenate([positive, pooled[0] @ bank.reshape(-1, channels).T], axis=1) / 0.2
    return moco, query @ key.transpose(0, 2, 1)


def assert_logits_equal(seen, step, recorded, prefix, rows=slice(None), kind="float64", tolerance=1e-9):
    jax.effects_barrier()
    assert len(seen) == step + 1
    moco, dense = logits_by_definition(*seen[step])
    close(f"{kind} instance logits", moco[rows], recorded[f"{prefix}logits_moco"], tolerance, f"step {step}")
    close(f"{kind} dense logits", dense[rows], recorded[f"{prefix}logits_dense"], tolerance, f"step {step}")


def under(run, prefix):
    return {k[len(prefix) :]: run[k] for k in run if k.startswith(prefix)}


RUNS = {
    "resnet-sgd": ("B_resnet_aspp_sgd", "B_resnet_aspp_sgd", dict(name="sgd", learning_rate=0.03, weight_decay=1e-4)),
    "vit-sgd": ("B_vit_aspp_sgd", "B_vit_aspp_adamw", dict(name="sgd", learning_rate=0.03, weight_decay=1e-4)),
    "vit-adamw": ("B_vit_aspp_adamw", "B_vit_aspp_adamw", dict(name="adamw", learning_rate=5e-5, weight_decay=0.01)),
}


def config_of(run, dtype, axis="query"):
    config = small_config("vit" if run.startswith("vit") else "resnet", dtype)
    config.optimizer.update(RUNS[run][2])
    config.loss.dense_axis = axis
    return config


@pytest.mark.parametrize("run", RUNS)
def test_four_steps_equal_the_original_in_float64(x64, reference, seen, run):
    """Losses, logits, gradients, queue, both encoders: 1e-9 on losses and logits, 1e-7 on gradients and parameters."""
    config = config_of(run, "float64")
    optimizer, update = make(config)
    recorded, inputs = reference(f"{RUNS[run][0]}_f64"), reference("B_inputs")
    state = recorded_state(config, optimizer, reference(RUNS[run][1]), jnp.float64)
    compared = set()
    for step in range(STEPS):
        state, metrics = update(state, recorded_pair(inputs, step, jnp.float64))
        prefix = f"f64/step{step}/"
        got = metrics.compute()
        for ours, theirs in [
            ("loss_instance", "loss_instance"),
            ("loss_dense", "loss_dense_official"),
            ("loss", "loss_total_official"),
        ]:
            close("float64 losses", metrics_value(metrics, ours), recorded[prefix + theirs], 1e-9, f"{run} {ours} {step}")
        assert_logits_equal(seen, step, recorded, prefix)
        assert got["queue_age"] == min(step + 1, 8)
        for tree, stats, theirs, kind in [
            (state.opt_state[0], state.batch_stats, "grad", "float64 gradients"),
            (state.params, state.batch_stats, "param_q_after", "float64 query parameters"),
            (state.key_params, state.key_batch_stats, "param_k_after", "float64 momentum parameters"),
        ]:
            arrays = under(recorded, f"{prefix}{theirs}/")
            if arrays:
                assert_torch_equal(kind, tree, stats, arrays, 1e-7)
                compared.add(theirs)
        norms = dict(zip(reference(RUNS[run][1])["grad_norm_names"], recorded[f"{prefix}grad_norms"], strict=True))
        ours = names.torch_from_variables({"params": state.opt_state[0], "batch_stats": state.batch_stats})
        largest = max(norms.values())
        for name, norm in norms.items():
            # A gradient that is zero but for rounding, as a bias's before a batch norm, has no digits to compare.
            if norm > 1e-12 * largest:
                close("float64 gradient norms, all parameters", np.linalg.norm(ours[name]), norm, 1e-7, f"{run} {name}")
    assert {"param_q_after", "param_k_after"} <= compared
    close("float64 queue", state.queue.reshape(64, 128).T, recorded["f64/step3/queue_after"], 1e-7, run)
    # The final state, batch statistics included, was recorded in float32: 32 values of each array.
    final = reference(RUNS[run][0])
    for encoder, params, stats in [("q", state.params, state.batch_stats), ("k", state.key_params, state.key_batch_stats)]:
        ours = names.torch_from_variables({"params": params, "batch_stats": stats})
        ours = {f"final/encoder_{encoder}.{name}": value for name, value in ours.items()}
        rows = dict(zip(final["final_names"], final["final_samples"], strict=True))
        assert ours.keys() == {name for name in rows if f"encoder_{encoder}." in name and "conv_seg" not in name}
        for name, value in ours.items():
            if "running" in name:
                close("final batch statistics, of float32", sample(value), rows[name], 1e-4, f"{run} {name}")
            elif run == "vit-adamw":
                # Adam divides a gradient that is all rounding by itself: the recording's own float32 and float64 runs end
                # up to 7e-5 apart, in biases of any size.
                close("final parameters, of float32, absolute, Adam", sample(value), rows[name], 1e-4, name, scale=1.0)
            else:
                close("final parameters, of float32", sample(value), rows[name], 1e-4, f"{run} {name}")
    # The classifier, which never enters the loss, got no weight decay in the original. Ours is not there.
    assert params.keys() == {"backbone", "head", "projection"}
    start = reference(RUNS[run][1])
    for leaf in ("weight", "bias"):
        name = f"encoder_q.decode_head.conv_seg.{leaf}"
        np.testing.assert_array_equal(rows[f"final/{name}"], sample(start[f"init/{name}"]))


def metrics_value(metrics, name):
    """The exact value: `compute()` rounds averages to float32."""
    metric = getattr(metrics, name)
    return metric.total / metric.count


@pytest.mark.parametrize("run", ["resnet-sgd", "vit-adamw"])
def test_equation_2_and_its_gradient_equal_the_recorded_ones(x64, reference, run):
    config = config_of(run, "float64", axis="key")
    optimizer, update = make(config)
    recorded = reference(f"{RUNS[run][0]}_f64")
    state = recorded_state(config, optimizer, reference(RUNS[run][1]), jnp.float64)
    state, metrics = update(state, recorded_pair(reference("B_inputs"), 0, jnp.float64))
    for ours in ("loss_dense", "loss"):
        theirs = recorded[f"f64/step0/loss_{'dense' if ours == 'loss_dense' else 'total'}_eq2"]
        close("float64 losses by equation 2", metrics_value(metrics, ours), theirs, 1e-9, run)
    gradients = under(recorded, "f64/step0/grad_eq2/")
    assert_torch_equal("float64 gradients by equation 2", state.opt_state[0], state.batch_stats, gradients, 1e-7)


@pytest.mark.parametrize("run", RUNS)
def test_first_step_equals_the_original_in_float32(reference, seen, run):
    config = config_of(run, "float32")
    optimizer, update = make(config)
    state = recorded_state(config, optimizer, reference(RUNS[run][1]), jnp.float32)
    _, metrics = update(state, recorded_pair(reference("B_inputs"), 0, jnp.float32))
    got = metrics.compute()
    recorded = reference(RUNS[run][0])
    for ours, theirs in [
        ("loss_instance", "loss_instance"),
        ("loss_dense", "loss_dense_official"),
        ("loss", "loss_total_official"),
    ]:
        close("float32 losses, first step", got[ours], recorded[f"step0/{theirs}"], 1e-4, run)
    assert_logits_equal(seen, 0, recorded, "step0/", kind="float32", tolerance=1e-4)


@pytest.mark.parametrize("backbone,name", [("resnet", "B_resnet_aspp_sgd"), ("vit", "B_vit_aspp_sgd")])
def test_two_processes_are_two_batch_norm_groups(x64, reference, seen, backbone, name):
    """The recorded run of two processes with shuffled keys, on one device with two groups.

    Rank r held samples 4r to 4r + 3, and its keys were rows idx_shuffle[4r:4r+4] of the global batch.
    """
    config = config_of(f"{backbone}-sgd", "float64")
    config.bn_groups = 2
    optimizer, update = make(config)
    recorded, inputs = reference(f"{name}_ws2"), reference("B_inputs")
    state = recorded_state(config, optimizer, reference(RUNS[f"{backbone}-sgd"][1]), jnp.float64)
    layer = "decode_head.bottleneck.bn"

    def means():
        return [
            names.torch_from_variables({"batch_stats": s})[f"{layer}.running_mean"]
            for s in (state.batch_stats, state.key_batch_stats)
        ]

    expected = means()
    first = list(expected)  # the first process's averages, which each step begins with on both
    for step in range(3):
        permutation = jnp.asarray(recorded[f"step{step}/idx_shuffle"])
        state, metrics = update(state, recorded_pair(inputs, step, jnp.float64), permutation)
        for ours, theirs in [("loss_instance", "loss_instance"), ("loss_dense", "loss_dense_official")]:
            ranks = [recorded[f"f64/step{step}/rank{r}/{theirs}"] for r in range(2)]
            close("float64 losses, two processes", metrics_value(metrics, ours), np.mean(ranks), 1e-9, f"{name} {step}")
        for rank in range(2):
            rows = slice(4 * rank, 4 * rank + 4)
            assert_logits_equal(seen, step, recorded, f"f64/step{step}/rank{rank}/", rows, "float64, two processes:")
        for prefix, digits, tolerance in (("f64/", "float64", 1e-7), ("", "float32", 1e-4)):
            gradients = under(recorded, f"{prefix}step{step}/grad/")
            if gradients:
                kind = f"{digits} gradients, two processes"
                assert_torch_equal(kind, state.opt_state[0], state.batch_stats, gradients, tolerance)
        # DistributedDataParallel starts each forward from the first process's averages; ours are the mean over groups.
        for index, (encoder, ours) in enumerate(zip("qk", means(), strict=True)):
            ranks = [recorded[f"step{step}/rank{r}/bn_{encoder}_running_mean/{layer}"] for r in range(2)]
            batch_mean = np.mean(ranks, axis=0) - 0.9 * first[index]
            expected[index], first[index] = 0.9 * expected[index] + batch_mean, ranks[0]
            close("float32 batch statistics, two processes", ours, expected[index], 1e-4, f"{name} {encoder} {step}")
    close("float32 queue, two processes", state.queue.reshape(64, 128).T, recorded["step2/queue_after"], 1e-4, name)
