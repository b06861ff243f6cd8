"""TensorRT's log lines as data. The lines are TensorRT-RTX 1.7.1's own; the numbers are chosen."""

from __future__ import annotations

import pytest

from trt_hspan.engine.builder_log import figures_from_log, is_about_scales, is_figure, line_from_errors

LAYERS = """Engine Layer Information:
Layer(Myelin): {ForeignNode[a...b]}, Tactic: 0x0000000000000000, input (Float[1,3,-1,-1]) -> output (Float[1,3,-1,-1])
Layer(PluginV3): attention, Tactic: 0x0000000000000000, a (Half[1,8,-1,-1]) -> b (Half[1,8,-1,-1])
Layer(PluginV3): attention_2, Tactic: 0x0000000000000000, b (Half[1,8,-1,-1]) -> c (Half[1,8,-1,-1])"""


def test_memory_and_layers_are_read() -> None:
    figures = figures_from_log(
        ["Total Activation Memory: 16580608 bytes", "Total Weights Memory: 22208 bytes", LAYERS]
    )
    assert figures.activation_memory_bytes == (16580608,)
    assert figures.weights_memory_bytes == 22208
    assert figures.engine_layer_counts == {"Myelin": 1, "PluginV3": 2}


def test_what_the_log_does_not_say_is_none() -> None:
    figures = figures_from_log(
        ["Max Scratch Memory: 5 bytes", "the Total Activation Memory: 7 bytes", "Layer(x): y"]
    )
    assert figures.activation_memory_bytes == ()
    assert figures.weights_memory_bytes is None
    assert figures.engine_layer_counts is None


def test_each_profile_has_its_activations() -> None:
    figures = figures_from_log(["Total Activation Memory: 3 bytes", "Total Activation Memory: 4 bytes"])
    assert figures.activation_memory_bytes == (3, 4)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Total Weights Memory: 1 bytes", True),
        (LAYERS, True),
        ("Total Host Persistent Memory: 80 bytes", False),
    ],
)
def test_only_messages_with_figures_are_kept(message: str, expected: bool) -> None:
    assert is_figure(message) is expected


def test_the_first_error_is_the_cause_and_loses_its_source_position() -> None:
    line = line_from_errors(
        [
            "IBuilder::build: Error Code 4: API Usage Error (Network has dynamic inputs,\n but no profile. "
            "In validate at /_src/optimizer/api/network.cpp:4023)",
            "[checkMacros.cpp::catchCudaError::250] Error Code 1",
        ]
    )
    assert (
        line == "IBuilder::build: Error Code 4: API Usage Error (Network has dynamic inputs, but no profile.)"
    )


def test_an_endless_error_is_cut() -> None:
    assert len(line_from_errors(["x" * 9000]) or "") == 400


def test_no_error_gives_no_line() -> None:
    assert line_from_errors([]) is None


def test_convolutions_that_were_fused_with_their_scales_are_counted() -> None:
    messages = [
        " (foreignNode) Converting conv weight scales to fp32.",
        " (foreignNode) Converting conv activation scales to fp32.",
        " (foreignNode) Converting conv weight scales to fp32.",
    ]
    assert all(map(is_figure, messages))
    assert figures_from_log(messages).quantized_convolutions == 2
    assert figures_from_log(["Total Weights Memory: 3 bytes"]).quantized_convolutions is None
    assert is_about_scales(messages[1])
    assert not is_about_scales("Total Weights Memory: 3 bytes")


def test_a_line_is_cut_from_400_characters_on() -> None:
    assert line_from_errors(["x" * 400]) == "x" * 400
    assert line_from_errors(["x" * 401]) == "x" * 397 + "..."


def test_weights_and_layers_of_several_lines_are_added_up() -> None:
    figures = figures_from_log(
        ["Total Weights Memory: 3 bytes", LAYERS, "Total Weights Memory: 4 bytes", LAYERS]
    )
    assert figures.weights_memory_bytes == 7
    assert figures.engine_layer_counts == {"Myelin": 2, "PluginV3": 4}
    assert figures_from_log(["Engine Layer Information:\n"]).engine_layer_counts == {}
