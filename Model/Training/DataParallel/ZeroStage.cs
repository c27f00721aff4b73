namespace LaspNative.Model;

/// <summary>
/// What the ranks of DP x SP divide among themselves instead of each holding a copy (ZeRO, arXiv 1910.02054). Every stage takes the same steps.
/// With P parameters of p bytes (4 in fp32, 2 in bf16) on R ranks, one rank holds, padding and what is in flight apart:
///   stage               parameters   gradients   optimizer states      sent per step
///   0  none (DDP)       p P          4 P         o P                   2 (R-1)/R 4 P
///   1  optimizer        p P          4 P         o P / R               (R-1)/R (4 + p) P
///   2  and gradients    p P          4 P / R     o P / R               (R-1)/R (4 + p) P
///   3  and parameters   p P / R      4 P / R     o P / R               (R-1)/R (4 P + p P + p P')
/// o = 8 bytes in fp32 (two moments), 12 in bf16 (and the fp32 master weights). P' counts the blocks but the last: gathered a second time, in backward. So in fp32 stages 1 and 2
/// send what DDP sends, and stage 3 at most 1.5 times as much.
/// </summary>
public enum ZeroStage
{
    /// <summary>Nothing: plain data parallelism.</summary>
    None = 0,

    /// <summary>Moments and master weights.</summary>
    OptimizerStates = 1,

    /// <summary>Those and the summed gradients.</summary>
    Gradients = 2,

    /// <summary>All of it: parameters are gathered block by block when they are needed.</summary>
    Parameters = 3,
}
