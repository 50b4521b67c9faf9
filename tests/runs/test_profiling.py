"""The profile's table: which part an operation belongs to, a real trace on the CPU."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pretrain_r50_aspp
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.runs import mesh, profiling


@pytest.mark.parametrize(
    "op_name,part",
    [
        ("jit(step)/augment/jit(_uniform)/mul", "augment"),
        ("jit(step)/key_forward/Segmenter/backbone/conv1/conv_general_dilated", "key forward"),
        ("jit(step)/jvp(query)/Segmenter/head/dot_general", "query forward"),
        ("jit(step)/transpose(jvp(query))/Segmenter/head/dot_general", "backward"),
        ("jit(step)/jvp(losses)/exp", "losses"),
        ("jit(step)/transpose(jvp(losses))/mul", "backward"),
        ("jit(step)/optimizer/add", "optimizer"),
        ("jit(step)/sub", profiling._OTHER),
        ("", profiling._OTHER),
    ],
)
def test_part_of(op_name, part):
    assert profiling.part_of(op_name) == part and part in profiling.PARTS


def test_table_by_hand():
    times = {"a": 0.3, "b": 0.1, "c": 0.05, "": 0.05}
    names = {"a": "jit(step)/jvp(query)/dot", "b": "jit(step)/augment/add"}
    table = profiling.format_table(times, 0.5, names, steps=2, elapsed=1.0, waited=0.05, longest=1)
    assert table.startswith("2 steps, 500.0 ms each; 5.0% of it the host waited for input\n")
    rows = {line[:36].strip(): line[36:].split() for line in table.splitlines()[3:]}
    assert rows["query forward"] == ["150.00", "60.0%"] and rows["augment"] == ["50.00", "20.0%"]
    assert rows["backward"] == ["0.00", "0.0%"] and rows["all operations"] == ["250.00", "100.0%"]
    assert rows["copies, other programs"] == ["25.00", "10.0%"] and rows["busy"] == ["250.00", "100.0%"]
    assert "a" in rows and "b" not in rows


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_graphs_are_off_where_there_are_some(platform):
    """The options are ones that this XLA knows: an unknown one is an error."""
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    assert profiling.compile_named(lowered, platform)(1.0) == 2.0
    with pytest.raises(Exception, match="No such compile option"):
        lowered.compile(compiler_options={"xla_gpu_no_such_graphs": ""})


def test_a_real_trace(tmp_path):
    """A step whose parts do known amounts of work: the backward pass twice the forward's products, no other."""

    def step(w, x):
        def loss(w):
            with jax.named_scope("query"):
                for _ in range(4):
                    x_ = x @ w
                return jnp.sum(jnp.tanh(x_ @ w))

        with jax.named_scope("augment"):
            x = jnp.sin(x)
        gradient = jax.grad(loss)(w)
        with jax.named_scope("optimizer"):
            return w - 1e-3 * gradient, jnp.sum(gradient)

    batches = itertools.repeat(jnp.ones((256, 256)))
    table = profiling.profile(jax.jit(step), jnp.eye(256), batches, tmp_path, steps=2, warm_up=1)
    assert (tmp_path / "table.txt").read_text() == table and list(tmp_path.rglob("*.xplane.pb"))
    assert table.startswith("2 steps, ")
    found = dict(re.findall(r"^(augment|query forward|backward|optimizer|all operations) +([\d.]+)", table, re.M))
    assert all(float(found[part]) > 0 for part in ("augment", "query forward", "backward", "all operations"))
    assert re.search(r"^all operations +[\d.]+ +100.0%$", table, re.M)


def test_the_step_names_its_parts():
    config = pretrain_r50_aspp.get_config()
    config.update(image_size=32, batch_size=4, bn_groups=1)
    config.model.resnet.update(width=8, stem_width=8, stage_sizes=(1, 1, 1, 1))
    config.model.aspp.channels = 8
    config.loss.queue_size = 8
    initial_state, step = pretrain_step.make_step(config, 10, 5, mesh.make_mesh())
    crops = np.zeros((4, 2, 32, 32, 3), np.uint8)
    text = step.lower(jax.eval_shape(initial_state), {"foreground": crops, "background": crops}).as_text(debug_info=True)
    parts = {profiling.part_of(name) for name in re.findall(r'loc\("([^"]*)"', text)}
    assert parts == set(profiling.PARTS)
