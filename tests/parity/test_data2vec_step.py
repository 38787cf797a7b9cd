"""One data2vec pretraining step against fairseq's: arrays, sums, gradients and the EMA step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.models.data2vec import (
    Data2Vec,
    Data2VecConfig,
    clone,
    frame_targets,
    gather_kept,
    utterance_targets,
)
from c2ser_jax.objectives.data2vec import (
    frame_regression,
    masked_deviation,
    published_sums,
    utterance_regression,
)
from c2ser_jax.training.step import update_average
from tests.golden_roots import golden_cases
from tests.parity.golden_weights import (
    AUDIO,
    config_from,
    decoder_params,
    encoder_params,
    load_checkpoint,
    read_arrays,
    read_meta,
)

NO_DROPOUT = {
    name: 0.0
    for name in ("dropout", "attention_dropout", "mlp_dropout", "prenet_dropout", "layer_drop",
                 "prenet_layer_drop")
}  # fmt: skip
NORMS = {"inst": "instance", "ln": "layer"}


def loss(model, student, teacher, source, masked, instance):
    samples = np.full(len(source), source.shape[1])
    out = model.apply({"params": student}, source, samples, masked, train=True, return_layers=True)
    layers = model.apply({"params": teacher}, out.local_features, out.frame_mask, method="teacher")
    both = [
        (
            frame_targets(layers, out.frame_mask, norm=norm),
            utterance_targets(layers, out.frame_mask, kind="published", norm=norm),
        )
        for norm in NORMS.values()
    ]
    frames, whole = jax.tree.map(lambda a, b: jnp.where(instance, a, b), *both)
    targets, whole = clone(frames, 2), clone(whole, 2)
    regression, utterance, count = published_sums(
        frame_regression(out.predictions, targets, out.masked),
        utterance_regression(out.utterance, whole, jnp.ones(len(whole), bool)),
    )
    found = {
        "loss_regression_sum": regression,
        "loss_cls_sum": utterance,
        "loss_total_sum": regression + utterance,
        "sample_size": count,
        "masked_pct": out.masked.mean(),
        "pred_var": masked_deviation(out.predictions, out.masked),
        "target_var": masked_deviation(targets, out.masked),
        "cls_pred": out.utterance,
        "cls_target": whole,
        "targets_all_frames": frames,
    }
    return (regression + utterance) / count, (found, out, layers)


@functools.cache
def compiled(model):
    return jax.jit(jax.value_and_grad(functools.partial(loss, model), has_aux=True))


class Step:
    """The golden case, and one compiled function that serves every test of it."""

    def __init__(self, folder):
        meta, weights = read_meta(folder)["model_cfg"], load_checkpoint(folder / "weights.pt")
        audio = meta["modalities"]["audio"]
        self.io = read_arrays(folder)
        self.cfg = config_from(meta, **NO_DROPOUT)
        self.model = Data2Vec(
            self.cfg,
            Data2VecConfig(
                clone_batch=meta["clone_batch"],
                mask_prob=audio["mask_prob"],
                mask_noise_std=audio["mask_noise_std"],
                average_top_k_layers=meta["average_top_k_layers"],
                decoder_width=audio["decoder"]["decoder_dim"],
                decoder_depth=audio["decoder"]["decoder_layers"],
                decoder_kernel=audio["decoder"]["decoder_kernel"],
                decoder_input_dropout=0.0,
            ),
        )
        self.student = self.tree(weights["student"])
        self.teacher = {"encoder": encoder_params(weights["teacher"], self.cfg)}
        self.masked = self.io["precomputed_mask"].astype(bool)

    def tree(self, state):
        return {"encoder": encoder_params(state, self.cfg), "decoder": decoder_params(state)}

    def __call__(self, variant, student=None, teacher=None, masked=None):
        return compiled(self.model)(
            self.student if student is None else student,
            self.teacher if teacher is None else teacher,
            self.io["source"],
            self.masked if masked is None else masked,
            variant == "inst",
        )


@pytest.fixture(scope="module", params=golden_cases("emotion2vec/pretrain_loss"), ids=str)
def step(request):
    return Step(request.param)


def near(found, wanted, atol=1e-4):
    assert np.shape(found) == np.shape(wanted)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)


def test_student_and_teacher_arrays_equal_fairseq(step):
    _, (_, out, layers) = step("inst")[0]
    io = step.io
    near(out.local_features, io["local_features"])
    near(out.layers["prenet_out"], io["student_prenet_out_time_order"])
    near(out.layers["encoder_out"], io["student_encoder_out_time_order"])
    np.testing.assert_array_equal(out.layers["kept_indices"], io["kept_frames_sorted"])
    near(out.layers["decoder_input"], io["decoder_input"])
    near(out.predictions, io["decoder_output"])
    near(layers, io["teacher_layer_results"][-2:])
    assert np.abs(io["mask_noise_time_order"]).max() == 0


@pytest.mark.parametrize("variant", NORMS)
def test_losses_and_targets_equal_fairseq(step, variant):
    _, (found, out, _) = step(variant)[0]
    io = {name.removeprefix(f"{variant}_"): value for name, value in step.io.items()}
    for name in ("loss_regression_sum", "loss_cls_sum", "loss_total_sum", "sample_size",
                 "masked_pct", "pred_var", "target_var"):  # fmt: skip
        np.testing.assert_allclose(found[name], io[name], rtol=1e-4, err_msg=name)
    for name in ("cls_pred", "cls_target", "targets_all_frames"):
        near(found[name], io[name])
    masked = np.asarray(out.masked)
    near(np.asarray(out.predictions)[masked], io["pred_masked"])
    near(np.asarray(clone(found["targets_all_frames"], 2))[masked], io["targets_masked"])
    elementwise = (found["cls_pred"] - found["cls_target"]) ** 2 / np.sqrt(64) * 72
    np.testing.assert_allclose(elementwise, io["loss_cls_elementwise"], rtol=0, atol=1e-2)


@pytest.mark.parametrize("variant", NORMS)
def test_gradients_equal_fairseq(step, variant):
    _, grads = step(variant)
    norm = np.sqrt(sum(np.square(np.float64(leaf)).sum() for leaf in jax.tree.leaves(grads)))
    assert norm == pytest.approx(float(step.io[f"{variant}_grad_norm_all_params"]), rel=1e-5)
    encoder, decoder = grads["encoder"], grads["decoder"]
    prenet = encoder["context_encoder"]
    ours = {
        "local_encoder.conv_layers.0.0.weight":
            encoder["local_encoder"]["conv_0"]["kernel"].transpose(2, 1, 0),
        "local_encoder.conv_layers.3.2.1.weight": encoder["local_encoder"]["norm_3"]["scale"],
        "project_features.2.weight": encoder["project_features"]["proj"]["kernel"].T,
        "alibi_scale": encoder["alibi_scale"][:, None, :, None, None],
        "extra_tokens": encoder["extra_tokens"][None],
        "relative_positional_encoder.1.0.weight":
            encoder["relative_positional_encoder"]["conv_0"]["kernel"].transpose(2, 1, 0),
        "context_encoder.norm.weight": prenet["norm"]["scale"],
        "context_encoder.blocks.0.attn.qkv.weight":
            prenet["blocks"]["attn"]["qkv"]["kernel"][0].T,
        "decoder.blocks.0.0.weight": decoder["conv_0"]["kernel"].transpose(2, 1, 0),
        "decoder.proj.weight": decoder["proj"]["kernel"].T,
    }  # fmt: skip
    ours = {AUDIO + name: value for name, value in ours.items()}
    ours["blocks.0.attn.qkv.weight"] = encoder["blocks"]["attn"]["qkv"]["kernel"][0].T
    ours["blocks.0.mlp.fc2.weight"] = encoder["blocks"]["mlp"]["fc2"]["kernel"][0].T
    prefix = f"{variant}_grad/"
    wanted = {k.removeprefix(prefix): v for k, v in step.io.items() if k.startswith(prefix)}
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(
            ours[name], value, rtol=0, atol=1e-4 * np.abs(value).max(), err_msg=name
        )
    scale = step.student["encoder"]["alibi_scale"]
    assert (encoder["alibi_scale"][scale < 0] == 0).all()


def test_ema_step_equals_fairseq(step):
    decay = float(step.io["ema/decay"])

    def deviations(decay, student):
        moved = update_average(step.teacher, student, decay)["encoder"]
        kernel = moved["blocks"]["attn"]["qkv"]["kernel"][0].T
        scale = moved["alibi_scale"][:, None, :, None, None]
        return [
            np.abs(kernel - step.io["ema/blocks.0.attn.qkv.weight"]).max(),
            np.abs(scale - step.io[f"ema/{AUDIO}alibi_scale"]).max(),
        ]

    assert max(deviations(decay, step.student)) < 1e-6
    assert min(deviations(decay + 0.01, step.student)) > 1e-4  # a wrong decay shows
    assert min(deviations(decay, step.teacher)) > 1e-3  # so does the wrong source
    assert "local_encoder" not in update_average(step.teacher, step.student, decay)["encoder"]


def shifted_mask(step):
    return dict(masked=np.roll(step.masked, 1, 1)), "loss_regression_sum"


def unmasked_row(step):
    return dict(masked=step.masked & (np.arange(4) > 0)[:, None]), "sample_size"


def students_teacher(step):
    encoder = {name: step.student["encoder"][name] for name in step.teacher["encoder"]}
    return dict(teacher={"encoder": encoder}), "loss_regression_sum"


def clones_apart(step):
    return dict(masked=step.masked[[0, 2, 1, 3]]), "loss_regression_sum"


def another_token(step):
    encoder = step.student["encoder"]
    tokens = np.roll(encoder["extra_tokens"], 1, 0)
    student = {**step.student, "encoder": {**encoder, "extra_tokens": tokens}}
    return dict(student=student), "loss_cls_sum"


def reversed_decoder(step):
    decoder = step.student["decoder"]
    conv = {**decoder["conv_1"], "kernel": decoder["conv_1"]["kernel"][::-1]}
    return dict(student={**step.student, "decoder": {**decoder, "conv_1": conv}}), "pred_var"


@pytest.mark.parametrize(
    "fault",
    [shifted_mask, unmasked_row, students_teacher, clones_apart, another_token, reversed_decoder],
)
def test_planted_fault_in_the_step_shows(step, fault):
    changes, name = fault(step)
    (_, (found, _, _)), grads = step("ln", **changes)
    wanted = float(step.io[f"ln_{name}"])
    assert abs(float(found[name]) - wanted) > 3e-4 * abs(wanted)
    kernel = grads["encoder"]["project_features"]["proj"]["kernel"].T
    wanted = step.io[f"ln_grad/{AUDIO}project_features.2.weight"]
    assert np.abs(kernel - wanted).max() > 1e-3 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("variant", "layers", "norm", "real", "agrees"),
    [
        ("inst", slice(-2, None), "instance", 37, True),
        ("ln", slice(-2, None), "layer", 37, True),
        ("inst", slice(None), "instance", 37, False),
        ("inst", slice(-2, None), "layer", 37, False),
        ("ln", slice(-2, None), "instance", 37, False),
        ("inst", slice(-2, None), "instance", 36, False),
    ],
)
def test_targets_of_the_golden_teacher_show_every_fault(step, variant, layers, norm, real, agrees):
    results = step.io["teacher_layer_results"][layers]
    mask = jnp.broadcast_to(jnp.arange(37) < real, (2, 37))
    deviation = np.abs(
        frame_targets(results, mask, norm=norm) - step.io[f"{variant}_targets_all_frames"]
    )[:, :36].max()
    assert deviation < 1e-4 if agrees else deviation > 1e-3
    whole = utterance_targets(results, mask, kind="published", norm=norm)
    deviation = np.abs(whole - step.io[f"{variant}_cls_target"][::2]).max()
    assert deviation < 1e-5 or not agrees


def test_our_utterance_target_is_not_degenerate(step):
    results, mask = step.io["teacher_layer_results"][-2:], jnp.ones((2, 37), bool)
    published = utterance_targets(results, mask, kind="published", norm="instance")
    ours = utterance_targets(results, mask, kind="pooled", norm="instance")
    assert np.abs(published).max() < 1e-6
    assert np.abs(ours).max() > 0.5
    pooled = results.mean(2)
    pooled = (pooled - pooled.mean(-1, keepdims=True)) / np.sqrt(
        pooled.var(-1, keepdims=True) + 1e-5
    )
    near(ours, pooled.mean(0), 1e-5)


def test_kept_frames_come_first_in_time_order(step):
    kept = ~step.masked
    times = np.broadcast_to(np.arange(37.0)[:, None], (4, 37, 1))
    x, order, mask = gather_kept(jnp.asarray(times), jnp.asarray(kept), 19)
    np.testing.assert_array_equal(order, step.io["kept_frames_sorted"])
    np.testing.assert_array_equal(x[:, :, 0], order)
    assert mask.all()
