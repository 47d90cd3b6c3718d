import math
import re

import numpy as np
import pytest
import torch

from mmmlib import _check as check

FLOATS = torch.zeros(3, 2)
LABELS = torch.tensor([0, -1, 2])
NAN, INF = math.nan, math.inf


def values(*numbers):
    return torch.tensor(numbers, dtype=torch.float32)


def with_bad(value, row, shape=(4, 3)):
    rows = torch.zeros(shape)
    rows[row, -1] = value
    return rows


REFUSED = {
    "an array": (
        lambda: check.check_tensor(features=np.zeros(2)),
        TypeError,
        "features must be a torch.Tensor, got numpy.ndarray; torch.from_numpy converts an array",
    ),
    "a list": (
        lambda: check.check_tensor(features=FLOATS, labels=[0, 1]),
        TypeError,
        "labels must be a torch.Tensor, got builtins.list",
    ),
    "None": (
        lambda: check.check_tensor(labels=None),
        TypeError,
        "labels must be a torch.Tensor, got builtins.NoneType",
    ),
    "a vector of features": (
        lambda: check.check_features(visible=values(1, 2)),
        ValueError,
        "visible must be a floating-point tensor (n, dim), got torch.float32 of shape (2,)",
    ),
    "a cube of features": (
        lambda: check.check_features(visible=FLOATS, infrared=torch.zeros(1, 2, 3)),
        ValueError,
        "infrared must be a floating-point tensor (n, dim), got torch.float32 of shape (1, 2, 3)",
    ),
    "whole-number features": (
        lambda: check.check_features(features=torch.zeros(3, 2, dtype=torch.int64)),
        ValueError,
        "features must be a floating-point tensor (n, dim), got torch.int64 of shape (3, 2)",
    ),
    "complex features": (
        lambda: check.check_features(features=torch.zeros(3, 2, dtype=torch.complex64)),
        ValueError,
        "features must be a floating-point tensor (n, dim), got torch.complex64 of shape (3, 2)",
    ),
    "features of two widths": (
        lambda: check.check_features(visible=FLOATS, infrared=torch.zeros(4, 5)),
        ValueError,
        "visible and infrared must have the same number of columns, "
        "got visible (3, 2), infrared (4, 5)",
    ),
    "features on two devices": (
        lambda: check.check_features(visible=FLOATS, infrared=FLOATS.to("meta")),
        ValueError,
        "visible and infrared must be on one device, got visible on cpu, infrared on meta",
    ),
    "tensors on two devices": (
        lambda: check.check_devices(features=FLOATS, labels=LABELS, weights=FLOATS.to("meta")),
        ValueError,
        "features and labels and weights must be on one device, "
        "got features on cpu, labels on cpu, weights on meta",
    ),
    "nan in a matrix": (
        lambda: check.check_finite(features=with_bad(NAN, 2)),
        ValueError,
        "features must be finite, got nan in row 2",
    ),
    "minus infinity in a vector": (
        lambda: check.check_finite(features=FLOATS, losses=values(0, 1, -INF, NAN)),
        ValueError,
        "losses must be finite, got -inf in row 2",
    ),
    "infinity in a cube": (
        lambda: check.check_finite(values=with_bad(INF, 1, shape=(3, 2, 2))),
        ValueError,
        "values must be finite, got inf in row 1",
    ),
    "labels of another type": (
        lambda: check.check_labels(labels=LABELS.int()),
        ValueError,
        "labels must be an int64 tensor of shape (n,), got torch.int32 of shape (3,)",
    ),
    "a matrix of labels": (
        lambda: check.check_labels(groups=LABELS[None]),
        ValueError,
        "groups must be an int64 tensor of shape (n,), got torch.int64 of shape (1, 3)",
    ),
    "too few labels": (
        lambda: check.check_labels(4, labels=LABELS),
        ValueError,
        "labels must be an int64 tensor of shape (4,), got torch.int64 of shape (3,)",
    ),
    "labels that are an array": (
        lambda: check.check_labels(3, labels=LABELS.numpy()),
        TypeError,
        "labels must be a torch.Tensor, got numpy.ndarray; torch.from_numpy converts an array",
    ),
    "labels below -1": (
        lambda: check.check_labels(3, labels=LABELS - 2),
        ValueError,
        "labels must be -1 or above, got -3",
    ),
    "labels above the clusters": (
        lambda: check.check_label_range("labels", LABELS, 2),
        ValueError,
        "labels must be below the number of clusters 2, got 2",
    ),
    "weights of another length": (
        lambda: check.check_weights(3, weights=values(1, 1)),
        ValueError,
        "weights must be a floating-point tensor of shape (3,), got torch.float32 of shape (2,)",
    ),
    "whole-number weights": (
        lambda: check.check_weights(3, visible_weights=None, infrared_weights=LABELS),
        ValueError,
        "infrared_weights must be a floating-point tensor of shape (3,), "
        "got torch.int64 of shape (3,)",
    ),
    "weights that are a list": (
        lambda: check.check_weights(2, weights=[1.0, 2.0]),
        TypeError,
        "weights must be a torch.Tensor, got builtins.list",
    ),
    "a weight below 0": (
        lambda: check.check_weights(3, weights=values(0, -0.5, -1)),
        ValueError,
        "weights must be finite and 0 or above, got -0.5",
    ),
    "an infinite weight": (
        lambda: check.check_weights(2, weights=values(0, INF)),
        ValueError,
        "weights must be finite and 0 or above, got inf",
    ),
    "a weight that is no number": (
        lambda: check.check_weights(2, weights=values(NAN, 1)),
        ValueError,
        "weights must be finite and 0 or above, got nan",
    ),
    "a share above 1": (
        lambda: check.check_shares(weights=values(0.5, 1.5)),
        ValueError,
        "weights must be in [0, 1], got 1.5",
    ),
    "a share that is no number": (
        lambda: check.check_shares(weights=values(1, NAN)),
        ValueError,
        "weights must be in [0, 1], got nan",
    ),
    "a cost vector": (
        lambda: check.check_cost("cost", values(1, 2)),
        ValueError,
        "cost must be a floating-point tensor (n_visible, n_infrared), "
        "got torch.float32 of shape (2,)",
    ),
    "a cost array": (
        lambda: check.check_cost("cost", np.zeros((2, 2))),
        TypeError,
        "cost must be a torch.Tensor, got numpy.ndarray; torch.from_numpy converts an array",
    ),
    "a cost of nan": (
        lambda: check.check_cost("cost", with_bad(NAN, 1)),
        ValueError,
        "cost must not hold nan or -inf, got nan at (1, 2)",
    ),
    "a cost of minus infinity": (
        lambda: check.check_cost("plan", with_bad(-INF, 3)),
        ValueError,
        "plan must not hold nan or -inf, got -inf at (3, 2)",
    ),
    "memories in a matrix": (
        lambda: check.check_sub_prototypes(visible=(FLOATS, FLOATS)),
        ValueError,
        "visible must be a floating-point tensor (clusters, memories, dim), "
        "got torch.float32 of shape (3, 2)",
    ),
    "memories that are an array": (
        lambda: check.check_sub_prototypes(visible=(np.zeros((1, 1, 1)), FLOATS)),
        TypeError,
        "visible must be a torch.Tensor, got numpy.ndarray; torch.from_numpy converts an array",
    ),
    "memory weights that are a list": (
        lambda: check.check_sub_prototypes(visible=(torch.zeros(1, 2, 3), [[1, 0]])),
        TypeError,
        "visible weights must be a torch.Tensor, got builtins.list",
    ),
    "memories that are not finite": (
        lambda: check.check_sub_prototypes(
            visible=(with_bad(NAN, 1, shape=(2, 1, 3)), torch.ones(2, 1))
        ),
        ValueError,
        "visible must be finite, got nan in row 1",
    ),
    "memory weights of another shape": (
        lambda: check.check_sub_prototypes(infrared=(torch.zeros(2, 4, 3), torch.ones(2, 3))),
        ValueError,
        "infrared weights must have shape (2, 4), got (2, 3)",
    ),
    "a cluster without a real memory": (
        lambda: check.check_sub_prototypes(
            infrared=(torch.zeros(3, 2, 3), torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.5, 0.5]]))
        ),
        ValueError,
        "infrared must have a real memory in every cluster, got none in 1",
    ),
    "memories of two widths": (
        lambda: check.check_sub_prototypes(
            visible=(torch.zeros(1, 2, 3), torch.ones(1, 2)),
            infrared=(torch.zeros(1, 2, 4), torch.ones(1, 2)),
        ),
        ValueError,
        "visible and infrared must have the same number of columns, "
        "got visible (1, 2, 3), infrared (1, 2, 4)",
    ),
    "another word": (
        lambda: check.check_choice("form", "book", ("paper", "code")),
        ValueError,
        "form must be 'paper' or 'code', got 'book'",
    ),
    "none of three words": (
        lambda: check.check_choice("rule", None, ("sequential", "hardest", "mean")),
        ValueError,
        "rule must be 'sequential', 'hardest' or 'mean', got None",
    ),
    "not the only word": (
        lambda: check.check_choice("form", "code", ("paper",)),
        ValueError,
        "form must be 'paper', got 'code'",
    ),
    "a word for a flag": (
        lambda: check.check_flag(exact=True, mirror="no"),
        TypeError,
        "mirror must be True or False, got 'no'",
    ),
    "a count of 0": (
        lambda: check.check_count("k1", 0),
        ValueError,
        "k1 must be a whole number of at least 1, got 0",
    ),
    "a count below its least": (
        lambda: check.check_count("rounds", 1, 2),
        ValueError,
        "rounds must be a whole number of at least 2, got 1",
    ),
    "a broken count": (
        lambda: check.check_count("k", 2.0),
        ValueError,
        "k must be a whole number of at least 1, got 2.0",
    ),
    "a count of True": (
        lambda: check.check_count("k", True),
        ValueError,
        "k must be a whole number of at least 1, got True",
    ),
    "a number above its interval": (
        lambda: check.check_number("momentum", 1.5, 0, 1),
        ValueError,
        "momentum must be in [0, 1], got 1.5",
    ),
    "a number below its interval": (
        lambda: check.check_number("margin", -0.25, 0, INF),
        ValueError,
        "margin must be in [0, inf], got -0.25",
    ),
    "the open lower end": (
        lambda: check.check_number("temperature", 0, 0, INF, open_low=True, open_high=True),
        ValueError,
        "temperature must be in (0, inf), got 0",
    ),
    "the open upper end": (
        lambda: check.check_number("eps", 1.0, 0, 1, open_high=True),
        ValueError,
        "eps must be in [0, 1), got 1.0",
    ),
    "a number that is none": (
        lambda: check.check_number("eps", NAN, 0, 1),
        ValueError,
        "eps must be in [0, 1], got nan",
    ),
    "a word for a number": (
        lambda: check.check_number("eps", "0.5", 0, 1),
        ValueError,
        "eps must be in [0, 1], got '0.5'",
    ),
    "a sparse matrix": (
        lambda: check.check_dense(features=FLOATS.to_sparse()),
        ValueError,
        "features must be a dense tensor, got one of layout torch.sparse_coo",
    ),
    "nothing to look at": (
        lambda: check.check_values(features=FLOATS.to("meta")),
        ValueError,
        "features must hold values, got a tensor on the device meta",
    ),
    "too large a table": (
        lambda: check.check_room("memories", 4, 2**40),
        ValueError,
        "memories must need a table of at most 2147483648 entries, got 4 x 1099511627776",
    ),
    "a label without a row": (
        lambda: check.check_numbered(labels=torch.tensor([0, 2**24])),
        ValueError,
        "labels must be below 16777216 (relabel closes gaps), got 16777216",
    ),
    "too large a count": (
        lambda: check.check_count("kernels", 7, most=6),
        ValueError,
        "kernels must be at most 6, got 7",
    ),
    "True for a number": (
        lambda: check.check_number("eps", True, 0, 1),
        ValueError,
        "eps must be in [0, 1], got True",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_errors_say_the_argument_the_requirement_and_the_value(what):
    call, error, sentence = REFUSED[what]
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        call()


ACCEPTED = {
    "no tensors": lambda: check.check_tensor(),
    "a parameter": lambda: check.check_tensor(weights=torch.nn.Parameter(FLOATS)),
    "halves": lambda: check.check_features(visible=FLOATS.half(), infrared=FLOATS.bfloat16()),
    "no rows": lambda: check.check_features(visible=FLOATS, infrared=torch.zeros(0, 2)),
    "no columns": lambda: check.check_features(visible=torch.zeros(3, 0)),
    "one device": lambda: check.check_devices(features=FLOATS, labels=LABELS),
    "finite rows": lambda: check.check_finite(features=FLOATS, labels=LABELS),
    "nothing that is not finite": lambda: check.check_finite(
        rows=torch.zeros(0, 2), columns=torch.zeros(2, 0), half=FLOATS.half()
    ),
    "labels with noise": lambda: check.check_labels(3, labels=LABELS),
    "no labels": lambda: check.check_labels(0, labels=LABELS[:0]),
    "labels that are not looked at": lambda: check.check_labels(3, labels=LABELS.to("meta")),
    "labels in range": lambda: check.check_label_range("labels", LABELS, 3),
    "no labels in range": lambda: check.check_label_range("labels", LABELS[:0], 0),
    "no weights": lambda: check.check_weights(3, weights=None),
    "weights of 0": lambda: check.check_weights(3, weights=torch.zeros(3)),
    "no row to weigh": lambda: check.check_weights(0, weights=torch.zeros(0)),
    "shares of 0 and 1": lambda: check.check_shares(weights=values(0, 1)),
    "a cost of infinity": lambda: check.check_cost("cost", with_bad(INF, 1)),
    "an empty cost": lambda: check.check_cost("cost", torch.zeros(0, 3)),
    "memories": lambda: check.check_sub_prototypes(
        visible=(torch.zeros(2, 2, 3), torch.tensor([[1.0, 0.0], [0.5, 0.5]])),
        infrared=(torch.zeros(1, 4, 3), torch.ones(1, 4)),
    ),
    "no memories": lambda: check.check_sub_prototypes(
        visible=(torch.zeros(0, 4, 3), torch.zeros(0, 4))
    ),
    "a word": lambda: check.check_choice("form", "code", ("paper", "code")),
    "flags": lambda: check.check_flag(exact=True, mirror=np.bool_(False)),
    "the least count": lambda: check.check_count("k", 0, 0),
    "both ends": lambda: [check.check_number("eps", end, 0, 1) for end in (0, 1, 0.0, 1.0)],
    "inside open ends": lambda: check.check_number(
        "temperature", 0.05, 0, INF, open_low=True, open_high=True
    ),
}


@pytest.mark.parametrize("what", ACCEPTED)
def test_what_is_right_passes(what):
    ACCEPTED[what]()


def test_every_check_is_tried():
    tried = {name for call, *_ in REFUSED.values() for name in call.__code__.co_names}
    assert {name for name in vars(check) if name.startswith("check_")} - tried == set()
