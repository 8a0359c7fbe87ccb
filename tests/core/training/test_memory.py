"""The account of a step's memory: counted from sizes, checked against modules on the meta device."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from smra_core.encoders.sea_raft import SeaRaft
from smra_core.encoders.sea_raft_config import SEA_RAFT_M
from smra_core.training.decode_memory import estimate
from smra_core.training.memory import (
    FLOW_NET_BYTES,
    GIB,
    DitMemory,
    choose_resident_blocks,
    count_block_bytes,
    count_model_bytes,
    count_other_bytes,
    estimate_motion_memory,
    estimate_subject_memory,
)
from smra_core.training.motion_settings import MotionSettings
from smra_core.training.sura import SubjectSettings
from smra_core.wan.spec import SPECS, WAN_1_3B, WAN_14B

MOTION, SUBJECT = MotionSettings(), SubjectSettings()


def count_bytes(module, value_bytes=2):
    return value_bytes * sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_weights_are_those_of_the_model_itself(spec):
    with torch.device("meta"):
        dit = WanTransformer3DModel(
            num_layers=1, ffn_dim=spec.ffn, num_attention_heads=spec.heads,
            attention_head_dim=spec.dim // spec.heads, in_channels=spec.latents.channels,
            out_channels=spec.latents.channels,
        )  # fmt: skip
    assert count_block_bytes(spec) == count_bytes(dit.blocks[0])
    assert count_other_bytes(spec) == count_bytes(dit) - count_bytes(dit.blocks[0])


def test_the_flow_net_is_as_large_as_it_is():
    with torch.device("meta"):
        net = SeaRaft(SEA_RAFT_M)
    assert count_bytes(net, 4) == pytest.approx(FLOW_NET_BYTES, rel=0.05)


def whole(spec, share=1.0):
    return DitMemory(round(share * count_model_bytes(spec)))


def tell_motion(spec=WAN_1_3B, weights=None, decode="windowed", recompute=False, **options):
    choice = estimate(MOTION, decode, recompute, spec)
    return estimate_motion_memory(spec, MOTION, choice, weights or whole(spec), **options)


# Bytes allocated at the peak, and the context, by python -m tests.benchmarks.gpu on an NVIDIA H200.
MEASURED = [
    ("windowed", False, 13597078016), ("windowed", True, 10938376192), ("tiny", False, 8005441024),
    ("exact", False, 27883794944), ("exact", True, 19454000000), ("exact-low-memory", False, 10425850368),
]  # fmt: skip
CONTEXT = 810352640


@pytest.mark.parametrize("decode, recompute, allocated", MEASURED)
def test_a_motion_step_is_told_as_it_was_measured_on_a_card(decode, recompute, allocated):
    told = tell_motion(decode=decode, recompute=recompute).total
    assert told == pytest.approx(allocated + CONTEXT, rel=0.06)


def test_a_subject_step_is_told_as_it_was_measured_on_a_card():
    told = estimate_subject_memory(WAN_1_3B, SUBJECT, whole(WAN_1_3B))
    assert told.total == pytest.approx(3678511104 + CONTEXT, rel=0.1)


def test_parts_by_hand():
    account = tell_motion()
    parameters = 30 * 64 * (4 * (1536 + 1536) + 2 * (1536 + 8960))
    assert account.lora == account.optimizer == 8 * parameters
    assert account.weights == count_model_bytes(WAN_1_3B) and account.streamed == 0
    assert account.activations == round(estimate(MOTION, "windowed", False, WAN_1_3B).bytes)
    assert account.total == sum(vars(account).values())
    assert tell_motion(decode="tiny").decoder == 0


def test_without_the_flow_loss_neither_decoder_nor_flow_net_takes_part():
    settings = MotionSettings(mora_weight=0.0)
    account = estimate_motion_memory(
        WAN_1_3B, settings, estimate(settings, "windowed", False, WAN_1_3B), whole(WAN_1_3B)
    )
    assert account.decoder == account.flow_net == 0 and account.activations < 2e9


def test_weights_count_by_the_bytes_of_their_file():
    half, one_byte = tell_motion(WAN_14B), tell_motion(WAN_14B, whole(WAN_14B, 0.5))
    assert half.weights - one_byte.weights == pytest.approx(14.3e9, rel=0.01)


def test_blocks_that_wait_in_host_memory_leave_room_for_two_at_work():
    block = count_block_bytes(WAN_14B)
    account = tell_motion(WAN_14B, DitMemory(count_model_bytes(WAN_14B), resident=10))
    assert account.weights == pytest.approx(count_other_bytes(WAN_14B) + 10 * block, abs=2)
    assert account.streamed == pytest.approx(2 * block, abs=2)
    assert tell_motion(WAN_14B, DitMemory(count_model_bytes(WAN_14B), resident=40)).streamed == 0


def test_as_many_blocks_stay_as_fit():
    def account_of(resident):
        return tell_motion(WAN_14B, DitMemory(count_model_bytes(WAN_14B), resident), recompute=True)

    chosen = choose_resident_blocks(WAN_14B, account_of, 24 * GIB)
    assert 0 < chosen < 40
    assert account_of(chosen).fits(24 * GIB) and not account_of(chosen + 1).fits(24 * GIB)
    assert choose_resident_blocks(WAN_14B, account_of, 100 * GIB) == 40
    assert choose_resident_blocks(WAN_14B, account_of, 8 * GIB) == 0


def test_batch_and_precision_count():
    once, twice = tell_motion(), tell_motion(batch_size=2)
    assert twice.activations == pytest.approx(2 * once.activations, abs=2)
    assert tell_motion(value_bytes=4).activations == twice.activations
    assert estimate_subject_memory(WAN_1_3B, SUBJECT, whole(WAN_1_3B), 3).total > once.flow_net


def test_the_account_is_told_by_part():
    text = tell_motion().describe()
    assert text.startswith("13.3 GiB (weights 2.6, activations 8.4, ")
    assert "streamed" not in text and "flow net 0.1, context 1.0)" in text
