using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Collectives;

/// <summary>
/// Where one rank's copies run, beside its compute work, and how ranks order their queues against one another.
/// On the CPU everything has happened when a call returns, so there is nothing to order and fences are null.
/// </summary>
internal abstract class CopyQueue : IDisposable
{
    public static CopyQueue Of(Device device) => device is CudaDevice gpu ? new CudaCopyQueue(gpu) : new CpuCopyQueue(device);

    /// <summary>Copies queued from now on start after the compute work queued so far.</summary>
    public abstract void FollowCompute();

    /// <summary>Compute work queued from now on starts after the copies queued so far.</summary>
    public abstract void LeadCompute();

    public abstract void Copy(nint source, nint destination, long bytes);

    /// <summary>A point behind everything queued so far that other ranks can wait for; null when it has been passed already.</summary>
    public abstract CopyFence? Mark();

    /// <summary>Copies queued from now on start after another rank's fence.</summary>
    public abstract void Follow(CopyFence? fence);

    public abstract void Dispose();

    private sealed class CpuCopyQueue(Device device) : CopyQueue
    {
        public override void FollowCompute() { }

        public override void LeadCompute() { }

        public override void Copy(nint source, nint destination, long bytes) => device.Copy(source, destination, bytes);

        public override CopyFence? Mark() => null;

        public override void Follow(CopyFence? fence) { }

        public override void Dispose() { }
    }
}

/// <summary>A point in one rank's copy queue.</summary>
internal abstract class CopyFence : IDisposable
{
    public abstract void Dispose();
}
