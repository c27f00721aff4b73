using Xunit;

namespace LaspNative.Tests;

/// <summary>
/// Tests of ranks over NCCL in this process run one after the other, beside nothing else. Two worlds on the same GPUs can lock each other up: loading a kernel or freeing memory waits for everything on its
/// GPU, also for a collective of the other world, which waits for a rank whose GPU does the same the other way round.
/// </summary>
[CollectionDefinition(nameof(OverNccl), DisableParallelization = true)]
public sealed class OverNccl;
