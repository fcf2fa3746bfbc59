"""The count of benchmarks/sass.py: which way through a loop it takes, and what it does not count."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LISTING = """
.text._Z6kernelIfEvT_:
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_1:
        /*0010*/                   LDG.E R3, desc[UR16][R2.64] ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
        /*0030*/                   FADD R3, R3, R3 ;
        /*0040*/                   VOTE.ANY R4, PT, P3 ;
        /*0050*/                   VOTE.ANY R5, PT, P3 ;
        /*0060*/               @P1 BRA `(.L_x_3) ;
        /*0070*/                   FMUL R3, R3, R3 ;
        /*0080*/                   DADD R4, R4, R4 ;
.L_x_3:
        /*0090*/                   NOP ;
        /*00a0*/                   BRA `(.L_x_4) ;
.L_x_2:
        /*00b0*/                   VOTE.ANY R4, PT, P3 ;
.L_x_4:
        /*00c0*/              @!P0 BRA `(.L_x_1) ;
        /*00d0*/                   EXIT ;
"""


@pytest.fixture
def sass(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("sass")
    monkeypatch.setattr(module, "short_name", lambda mangled: mangled)
    return module


def test_the_steady_way_is_the_shortest_of_those_that_do_the_most(sass):
    """Both ballots, not the one of the shorter way; past the branch that need not be taken; no NOP."""
    (kernel,) = sass.parsed(LISTING).values()
    assert kernel.steady(sass.Counted(1)) == len(["LDG", "BRA", "FADD", "VOTE", "VOTE", "BRA", "BRA", "BRA"])


NESTED = """
.text._Z6kernelIfEvT_:
.L_x_1:
        /*0000*/                   FADD R3, R3, R3 ;
        /*0010*/              @!P1 BRA `(.L_x_3) ;
        /*0020*/                   SHFL.BFLY PT, R3, R3, 0x1, 0x1f ;
        /*0030*/                   FADD R3, R3, R3 ;
.L_x_3:
        /*0040*/                   VOTE.ANY R4, PT, P3 ;
.L_x_2:
        /*0050*/                   FMUL R3, R3, R3 ;
        /*0060*/               @P2 CALL.REL.NOINC `(.L_x_4) ;
        /*0070*/                   BRA `(.L_x_2) ;
.L_x_4:
        /*0080*/              @!P0 BRA `(.L_x_1) ;
        /*0090*/                   EXIT ;
"""


def test_loops_within_count_as_often_as_they_go_round(sass):
    """Four times the three of the loop within, whose way out is a call; the way past a shuffle where the fewest are
    wanted, though it has less of what comes after that."""
    (kernel,) = sass.parsed(NESTED).values()
    around = ["FADD", "BRA", "VOTE", "BRA"]
    fewest = sass.Counted(1, (sass.TILES, (sass.FEWEST, "SHFL"), (sass.MOST, "FADD")), (4,))
    assert kernel.steady(fewest) == len(around) + 4 * 3
    most = sass.Counted(1, (sass.TILES, (sass.MOST, "FADD")), (4,))
    assert kernel.steady(most) == len([*around, "SHFL", "FADD"]) + 4 * 3


def test_what_is_asked_of_all_kernels(sass):
    found = sass.sizes(sass.parsed(LISTING))
    assert found["largest_kernel_bytes"] == 14 * 16
    assert found["with_float64"] == ["_Z6kernelIfEvT_"]
