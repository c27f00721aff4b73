using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;

namespace LaspNative.Collectives;

/// <summary>The one rank that this process is under a launcher, without a GPU; the other processes of its node have their share of the cores.</summary>
internal sealed class TcpProcess(LaunchedRank launched) : RankHost
{
    private TcpWorld? _world;

    public override Device OpenDevice(int rank) => new CpuDevice(Math.Max(1, Environment.ProcessorCount / launched.LocalSize));

    public override ICommunicator Join(int rank, Device device)
    {
        using var rendezvous = new Rendezvous(rank, launched.WorldSize, launched.MasterAddress, launched.MasterPort);
        _world = new TcpWorld(rank, launched.WorldSize, rendezvous);
        return new TcpCommunicator(_world, device);
    }

    public override void Abort(int rank, Exception reason) => _world?.Abort(rank, reason);
}
