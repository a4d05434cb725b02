"""The inner loop of a compiled kernel, read from SASS and from AMD's assembly, and the estimate made of it."""

import pytest

from lastword.bench.kernels.inner_loop import (
    InnerLoop,
    estimate,
    programs_per_multiprocessor,
    read_amdgcn,
    read_sass,
)

# A prologue that spills, an outer loop around two inner ones (the second is longer and has a mask), and a trap.
SASS = """
.text._kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   STL [R1], R6 ;
.L_x_4:
        /*0020*/                   IMAD R2, R3, R4, RZ ;
.L_x_1:
        /*0030*/                   LDGSTS.E.BYPASS.LTC128B.128 [R8], desc[UR14][R10.64] ;
        /*0040*/                   LDGDEPBAR ;
        /*0050*/                   DEPBAR.LE SB0, 0x2 ;
        /*0060*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0070*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR12], RZ, !UPT ;
        /*0080*/                   MUFU.EX2 R5, R6 ;
        /*0090*/                   FFMA R5, R6, R7, R8 ;
        /*00a0*/               @P1 F2FP.BF16.F32.PACK_AB R5, R6, R7 ;
        /*00b0*/               @P0 BRA `(.L_x_1) ;
.L_x_2:
        /*00c0*/                   LDG.E.64 R4, desc[UR4][R2.64] ;
        /*00d0*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR12], RZ, !UPT ;
        /*00e0*/                   LDL.LU R24, [R1] ;
        /*00f0*/                   FSEL R1, R2, -INF, P0 ;
        /*0100*/                   FMNMX R1, R2, R3, !PT ;
        /*0110*/                   FADD R1, R2, R3 ;
        /*0120*/                   FADD R1, R2, R3 ;
        /*0130*/                   FADD R1, R2, R3 ;
        /*0140*/                   FADD R1, R2, R3 ;
        /*0150*/                   FADD R1, R2, R3 ;
        /*0160*/              @!P0 BRA `(.L_x_2) ;
        /*0170*/              @!P2 BRA `(.L_x_4) ;
        /*0180*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0190*/                   EXIT ;
.L_x_5:
        /*01a0*/                   BRA `(.L_x_5);
"""


def test_the_shortest_inner_loop_with_matrix_instructions() -> None:
    loop = read_sass(SASS)
    assert loop.looped
    assert dict(loop.classes) == {
        "load": 1, "control": 2, "wait": 1, "barrier": 1, "matrix": 1, "exp": 1, "float": 1, "convert": 1,
    }  # fmt: skip
    assert (loop.instructions, loop.load_bytes, loop.store_bytes) == (9, 16, 0)
    assert loop.in_flight == 2
    assert loop.loop_spills == 1, "the one in the other loop; that of the prologue does not count"


def test_without_a_loop_the_whole_kernel_counts() -> None:
    straight = "\n".join(line for line in SASS.splitlines() if "BRA" not in line)
    loop = read_sass(straight)
    assert not loop.looped
    assert (loop.load_bytes, loop.store_bytes, loop.loop_spills) == (24, 16, 0)
    assert loop.classes["spill"] == 2


AMDGCN = """
_kernel:
	s_load_dwordx2 s[0:1], s[4:5], 0x0
	s_cbranch_scc1 .LBB0_3
.LBB0_2:                                ;   in Loop: Header=BB0_1 Depth=1
	v_mfma_f32_32x32x8_bf16_1k a[0:15], v[2:3], v[4:5], a[0:15]
	s_cbranch_scc0 .LBB0_3
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
	buffer_load_dwordx4 v[0:3], v4, s[0:3], 0 offen
	global_load_ushort v1, v[2:3], off
	s_waitcnt vmcnt(0)
	s_barrier
	ds_read_b128 v[0:3], v4
	v_exp_f32_e32 v1, v2
	v_pk_mul_f32 v[0:1], v[2:3], v[4:5]
	v_cmp_gt_f32_e32 vcc, v1, v2
	v_cvt_f32_i32_e32 v1, v2
	scratch_load_dword v35, off, off        ; 4-byte Folded Reload
	s_branch .LBB0_2
.LBB0_3:
	global_store_dwordx2 v0, v[2:3], s[0:1]
	s_endpgm
"""


def test_amd() -> None:
    loop = read_amdgcn(AMDGCN)
    assert dict(loop.classes) == {
        "matrix": 1, "control": 2, "load": 2, "wait": 1, "barrier": 1, "shared": 1, "exp": 1, "float": 2, "convert": 1,
        "spill": 1,
    }  # fmt: skip
    assert (loop.looped, loop.load_bytes, loop.loop_spills) == (True, 18, 1)
    assert estimate(loop, "gfx942", warps=8, flops=1000, in_fp32=False) is None
    assert programs_per_multiprocessor("gfx942", 128, 0, 8) == 0


@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "programs"),
    [
        ("sm_90", 255, 229_376, 8, 1),  # registers and memory for one
        ("sm_90", 96, 38_912, 4, 5),  # 5 · (12,288 registers and 39 KB)
        ("sm_80", 96, 38_912, 4, 4),  # 164 KB
        ("sm_90", 32, 16, 4, 16),  # 64 warps
        ("sm_90", 16, 0, 1, 32),  # 32 programs
        (
            "sm_90",
            33,
            0,
            8,
            6,
        ),  # registers are allocated 256 per warp at a time: 40, not 33, per thread
    ],
)
def test_programs(target: str, registers: int, shared: int, warps: int, programs: int) -> None:
    assert programs_per_multiprocessor(target, registers, shared, warps) == programs


def test_estimates() -> None:
    """1,024 cycles of matrix units; 400 instructions of 8 warps are 800 cycles, 100 exponentials 1,600."""
    flops = 4096 * 1024

    def loop(**classes: int) -> InnerLoop:
        return InnerLoop(looped=True, classes=classes, load_bytes=32, store_bytes=16, loop_spills=0)

    issue = estimate(loop(other=400), "sm_90", warps=8, flops=flops, in_fp32=False)
    assert issue == (1024 / 1824, 1.0)
    exponentials = estimate(loop(exp=100), "sm_90", warps=8, flops=flops, in_fp32=False)
    assert exponentials == (1024 / 2624, 1024 / 1600)
    in_fp32 = estimate(loop(float=4000, other=96), "sm_90", warps=8, flops=256 * 4096, in_fp32=True)
    assert in_fp32 == (0.5, 0.5)
    # 4 warps of 32 lanes move 48 bytes each in 1,000 cycles: 6.1 bytes per cycle, and an H100's memory 13.9
    low, high = estimate(loop(other=1000), "sm_90", warps=4, flops=0, in_fp32=False)
    assert low == high == pytest.approx(6.144 / (3.35e12 / 132 / 1.83e9))
