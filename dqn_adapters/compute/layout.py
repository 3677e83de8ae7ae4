"""The layout of the arrays that compiled code works with.

The compiled functions keep these numbers in their machine code; see `caching`.
"""

# Columns of a plan.
SOURCE, SIZE = 0, 1
"""The layer whose outputs are read (-1: the observations), and how many numbers they are."""
POSITIONS, INPUTS, UNITS = 2, 3, 4
"""Positions of the kernel (1 in a dense layer), and the numbers that each of them reads and makes.
The outputs of a layer are `(POSITIONS, UNITS)`: images are channels-last."""
ACTIVATION = 5
"""`NONE`, `RELU`, `TANH` or `ELU` (of alpha 1), which follows the layer. None follows the last one,
nor the one that makes V."""
VALUE = 6
"""In the last layer of a dueling head, which makes A: the layer that makes V. Else -1."""
OUTPUTS_AT, INPUTS_AT, END = 7, 8, 9
"""A pass through the network keeps the numbers of all layers, one behind the other. The columns
say where the layer's outputs begin, where its inputs begin (-1: they are the observations), and
where the layer ends; times the rows of the batch."""
GATHERS, PIXELS = 10, 11
"""0: the inputs are the source's outputs. 1: they are gathered; the columns from `PIXELS` on, one
for each of `POSITIONS * INPUTS`, say which numbers of the source they are."""

NONE, RELU, TANH, ELU = range(4)

# Rows of `tensors`: addresses of the parameters of both networks, of the gradient, and of what
# Adam keeps of it.
TARGET, ONLINE, GRADIENT, MOMENT1, MOMENT2, STEPS = range(6)

# Addresses of a batch: the fields of a `Transition` in their order; 0 is None.
OBSERVATIONS, ACTIONS, REWARDS, DISCOUNTS, NEXT_OBSERVATIONS, NEXT_ACTION_MASKS, WEIGHTS = range(7)

# An update reports the loss, means of the absolute TD errors, of predictions and targets, and the
# norm of the gradient before clipping; then, from `ROWS` on, B TD errors, predictions and targets.
LOSS, TD_ERROR_MEAN, Q_VALUE_MEAN, TD_TARGET_MEAN, GRAD_NORM, ROWS = range(6)
PER_ROW = 3


def seen_size(rows: int) -> int:
    """Length of what an update reports of a batch of so many rows."""
    return ROWS + PER_ROW * rows
