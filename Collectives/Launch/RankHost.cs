using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;

namespace LaspNative.Collectives;

/// <summary>Gives the ranks of one process their devices and communicators, and ends their group when one of them fails.</summary>
internal abstract class RankHost
{
    public abstract Device OpenDevice(int rank);

    /// <summary>Called by every rank on its own thread.</summary>
    public abstract ICommunicator Join(int rank, Device device);

    /// <summary>The rank's body has ended, well or not; called on its thread.</summary>
    public virtual void Leave(ICommunicator communicator) => communicator.Dispose();

    /// <summary>Wakes whatever waits for the failed rank.</summary>
    public abstract void Abort(int rank, Exception reason);
}

/// <summary>Ranks that meet in memory: on the CPU with a share of the cores each, or all on GPU 0.</summary>
internal sealed class LocalRanks(DeviceKind kind, int size) : RankHost
{
    private readonly LocalGroup _group = new(size);

    public override Device OpenDevice(int rank) => kind == DeviceKind.Cpu
        ? new CpuDevice(Math.Max(1, Environment.ProcessorCount / size))
        : Device.Open("cuda:0");

    public override ICommunicator Join(int rank, Device device) => _group.Communicator(rank, device);

    public override void Abort(int rank, Exception reason) => _group.Abort(rank, reason);
}
