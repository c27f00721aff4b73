using System.Net.Sockets;
using System.Text;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// One process's connections to all others, and the frames that have come over them. All groups of the process share it: frames carry their group.
/// The first failure ends everything: a peer that disappears, a rank that says it failed, ranks that call different things.
/// </summary>
internal sealed class TcpWorld : IDisposable
{
    private const int LingerMilliseconds = 2000; // for all links together
    private static readonly TimeSpan s_connectLimit = TimeSpan.FromSeconds(60);
    private readonly object _gate = new();
    private readonly Dictionary<(int Source, long Group, bool Message, long Sequence), TcpFrame> _arrived = [];
    private readonly TcpLink?[] _links;
    private readonly bool[] _left;
    private (string Message, Exception? Reason)? _failure;

    /// <summary>Connects with every other rank; all ranks have an open <paramref name="rendezvous"/>. Throws after a minute without one of them.</summary>
    public TcpWorld(int rank, int size, Rendezvous rendezvous)
    {
        Rank = rank;
        _links = new TcpLink?[size];
        _left = new bool[size];
        Socket?[] sockets = TcpConnector.Connect(rank, size, rendezvous, s_connectLimit);
        for (int peer = 0; peer < size; peer++)
        {
            if (sockets[peer] is not { } socket) continue;
            int source = peer;
            _links[peer] = new TcpLink(socket, $"rank {rank}, rank {peer}", frame => Deliver(source, frame), reason => Lose(source, reason));
        }
        foreach (TcpLink? link in _links) link?.Start();
    }

    public int Rank { get; }

    public int Size => _links.Length;

    /// <summary>Sends to another rank in the background, in order. The payload must not change any more.</summary>
    public void Post(int peer, TcpFrame frame)
    {
        lock (_gate) ThrowIfFailed();
        _links[peer]!.Post(frame);
    }

    /// <summary>Blocks until a peer's frame has come, and checks that it is what this rank's own call makes it expect.</summary>
    public byte[] Take(int peer, TcpKind kind, DType dtype, long group, long sequence, long bytes)
    {
        TcpFrame frame;
        lock (_gate)
        {
            var key = (peer, group, kind == TcpKind.Message, sequence);
            while (!_arrived.Remove(key, out frame!))
            {
                ThrowIfFailed();
                if (_left[peer]) Fail($"rank {peer} left before {TcpFrame.Describe(kind, dtype, bytes)} (operation {sequence}), which rank {Rank} called", null);
                else Monitor.Wait(_gate);
            }
        }
        if (frame.Kind != kind || frame.DType != dtype || frame.Payload.Length != bytes)
            throw Disagree($"rank {peer} called {frame.Describe()} where rank {Rank} called {TcpFrame.Describe(kind, dtype, bytes)} (operation {sequence}); all ranks must call the same operations in the same order");
        return frame.Payload;
    }

    /// <summary>Ends all groups on all ranks because ranks call different things.</summary>
    public GroupFailedException Disagree(string message)
    {
        var error = new GroupFailedException(message);
        End(message, error);
        return error;
    }

    /// <summary>Ends all groups on all ranks: <paramref name="rank"/>, which is this one, has failed.</summary>
    public void Abort(int rank, Exception reason) => End($"rank {rank} failed: {reason.Message}", reason);

    public void ThrowIfFailed()
    {
        if (_failure is not { } failure) return;
        throw failure.Reason is null ? new GroupFailedException(failure.Message) : new GroupFailedException(failure.Message, failure.Reason);
    }

    /// <summary>Says goodbye and waits, for a moment, until the others have too.</summary>
    public void Dispose()
    {
        foreach (TcpLink? link in _links) link?.Finish();
        long until = Environment.TickCount64 + LingerMilliseconds;
        foreach (TcpLink? link in _links) link?.Linger(until);
        foreach (TcpLink? link in _links) link?.Dispose();
    }

    private void Deliver(int source, TcpFrame frame)
    {
        lock (_gate)
        {
            if (frame.Kind == TcpKind.Abort) Fail(Encoding.UTF8.GetString(frame.Payload), null);
            else if (frame.Kind == TcpKind.Leave) _left[source] = true;
            else _arrived[(source, frame.Group, frame.Kind == TcpKind.Message, frame.Sequence)] = frame;
            Monitor.PulseAll(_gate);
        }
    }

    private void Lose(int peer, string reason)
    {
        lock (_gate) Fail($"rank {Rank} lost rank {peer} ({reason}); see what that rank printed", null);
    }

    /// <summary>Fails here and tells the others, unless it has failed already: what they sent, they know.</summary>
    private void End(string message, Exception reason)
    {
        lock (_gate)
        {
            if (_failure is not null) return;
            Fail(message, reason);
        }
        byte[] text = Encoding.UTF8.GetBytes(message);
        foreach (TcpLink? link in _links) link?.Post(new TcpFrame(TcpKind.Abort, default, 0, 0, text));
    }

    private void Fail(string message, Exception? reason)
    {
        _failure ??= (message, reason);
        Monitor.PulseAll(_gate);
    }
}
