"""A server that is killed while it trains, on a WAN of random weights, and the one that comes after it."""

import os

import pytest
import torch
from comfyui import served
from safetensors.torch import load_file
from training_prompts import furnish, listen, motion_graph, on_random_weights, subject_graph, succeeded

STEPS, SAVE_EVERY, KILLED_AFTER = 6, 2, 3
RUN = dict(steps=STEPS, save_every=SAVE_EVERY, preview_every=1)
"""ComfyUI may leave out reports of quick steps, but none with a preview."""


def only_run(base, name):
    (run,) = (base / "output" / "smra" / "runs").glob(f"motion-{name}-*")
    return run


@pytest.mark.skipif(os.name == "nt", reason="Windows has no kill -9")
def test_a_killed_server_loses_no_saved_step_and_the_next_one_goes_on_bit_for_bit(host, tmp_path):
    base = tmp_path / "base"
    with served(host, base) as first:
        furnish(first)
        graph = on_random_weights(motion_graph(first, name="killed", **RUN))
        socket = listen(first)
        first.queue(graph)
        event = {}
        while not (event.get("type") == "progress" and event["data"]["value"] >= KILLED_AFTER):
            event = socket.next()
            event = event if isinstance(event, dict) else {}
            assert event.get("type") != "execution_error", event
        first.kill()
        socket.close()
    run = only_run(base, "killed")
    saved = int(load_file(run / "state.safetensors")["step"])
    assert saved in (SAVE_EVERY, 2 * SAVE_EVERY) and not (run / "finished").exists()

    with served(host, base) as second:
        succeeded(second.run(graph))
        resumed = load_file(run / "lora.safetensors")
        assert len((run / "losses.csv").read_text().splitlines()) == 1 + STEPS
        run.rename(tmp_path / "kept")
        graph["train"]["inputs"]["preview_every"] = 1000  # or ComfyUI would answer from its cache
        succeeded(second.run(graph))
        whole = load_file(only_run(base, "killed") / "lora.safetensors")
        assert all(torch.equal(resumed[name], whole[name]) for name in whole)
        succeeded(second.run(on_random_weights(subject_graph(second, name="of_random_weights"))))
