"""The statements: in the paper's order, in words, and what checking them found about the paper's own wording."""

from typing import NamedTuple


class Statement(NamedTuple):
    words: str
    paper: str = ""  # where the paper asks for too much or too little, as its proofs, tests and counterexamples show


STATEMENTS = {
    "Contract": Statement("every call works, shapes, dtype and device follow the input, no neighbour and no earlier call matters"),
    "Conventions": Statement("fires as floor does, resets by subtraction, Eq. 8's window, QCFS's gradient at the clip's bounds"),
    "Eqs. 1-2 (IF, LIF)": Statement("one level: fires from theta up, resets by subtraction"),
    "Eqs. 5-6 (M-HT)": Statement("L levels: emits clip(floor(m/theta), 0, L) spikes, resets by subtraction"),
    "Eq. 7 (LM-HT)": Statement("M-HT on a current that the T-GIM has mixed over time"),
    "Eq. 4 (QCFS)": Statement("the quantised ANN's activation and its straight-through gradient"),
    "Eqs. 8-9 (gradients)": Statement(
        "the surrogate's window, and the gradients of x, Omega and lambda with the temporal chain detached",
        "Eq. 8 taken literally is larger by a factor theta than the released code's; equal at theta = 1",
    ),
    "Lemma 4.1": Statement(
        "one M-HT step emits what L IF steps with I/L emit",
        "asks for slightly too much: v(t-1) in [0, theta] is necessary and sufficient for L > 1",
    ),
    "Theorem 4.2 (i)": Statement(
        "over T windows, M-HT's spikes and potentials are those of an IF neuron of L*T steps",
        "asks for too much: all I < L*theta, or all I >= 0, is enough, with a leak between the windows too",
    ),
    "Theorem 4.2 (ii)": Statement(
        "a uniform current makes the sum of all spikes one clipped floor",
        "asks for slightly too much: v(0) in [0, theta] is necessary and sufficient; with I in range I needn't be uniform",
    ),
    "Corollary 4.3": Statement(
        "a uniform current fires uniformly if and only if it lies in the uniform firing region",
        "asks for too much: any v(0) in [0, theta), the region shifts down by v(0)/T (QCFS's v(0) = theta/2: by theta/(2T))",
    ),
    "Lemma A.1": Statement(
        "the potential after the reset stays in [0, theta)", "each bound needs only its own half of the precondition"
    ),
    "Theorem 4.4": Statement(
        "the expected difference between LM-HT and QCFS is 0, whatever L, T and Tq",
        "asks for too little: false without a uniform current; and 0 is the mean's difference, not the mean-square one's",
    ),
    "Theorem A.2": Statement(
        "dividing b and omega by L gives a one-level neuron over L*T steps with the same sums of spikes",
        "asks for too little: only while every window is in region A or B, and not through max-pooling or self-attention",
    ),
    "T-GIM to STBP": Statement(
        "Omega = identity and L = 1 is the LIF neuron",
        "asks for too little: backward it is STBP only if the temporal chain is kept, and training detaches it",
    ),
    "T-GIM to QCFS": Statement(
        "Omega = 1/T, lambda = 1 and v(0) = theta/2 make the time-average a QCFS activation of L*T levels",
        "asks for too little: not through max-pooling after a neuron, nor self-attention; theta must be vartheta/L",
    ),
}  # fmt: skip


def named(text: str) -> str:
    """The statement that a user means: its name, or the beginning of one name only.

    Raises:
        LookupError: there is none, or more than one.
    """
    names = [name for name in STATEMENTS if name.casefold() == text.casefold()]
    names = names or [name for name in STATEMENTS if name.casefold().startswith(text.casefold())]
    if len(names) != 1:
        raise LookupError(f"{text!r} is {'more than one' if names else 'no'} statement; --statements lists them")
    return names[0]
