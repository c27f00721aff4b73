using System.Collections.Concurrent;
using System.Net.Sockets;

namespace LaspNative.Collectives;

/// <summary>
/// The connection of two ranks. One thread sends what was posted, in order, another receives whatever comes: a rank that computes still takes what its
/// peers send, so that nobody waits to send.
/// </summary>
internal sealed class TcpLink : IDisposable
{
    private readonly Socket _socket;
    private readonly BlockingCollection<TcpFrame> _outbox = [];
    private readonly Thread _sender;
    private readonly Thread _receiver;
    private readonly Action<TcpFrame> _receive;
    private readonly Action<string> _lose;
    private volatile bool _left;
    private volatile bool _closing;

    /// <param name="receive">Called for every frame, on the receiving thread.</param>
    /// <param name="lose">Called with the reason when the peer goes without having said that it leaves.</param>
    public TcpLink(Socket socket, string name, Action<TcpFrame> receive, Action<string> lose)
    {
        _socket = socket;
        _receive = receive;
        _lose = lose;
        socket.NoDelay = true;
        socket.SetSocketOption(SocketOptionLevel.Socket, SocketOptionName.KeepAlive, true);
        _sender = new Thread(Send) { IsBackground = true, Name = $"{name} sends" };
        _receiver = new Thread(Receive) { IsBackground = true, Name = $"{name} receives" };
    }

    public void Start()
    {
        _sender.Start();
        _receiver.Start();
    }

    public void Post(TcpFrame frame) => _outbox.Add(frame);

    /// <summary>Says that nothing more is posted.</summary>
    public void Finish()
    {
        _closing = true;
        _outbox.Add(TcpFrame.Leave);
        _outbox.CompleteAdding();
    }

    /// <summary>Waits until what was posted is sent and the peer has finished too: closing earlier could cost it what it has not received, such as why this rank goes.</summary>
    /// <param name="until">When it waits no longer, as <see cref="Environment.TickCount64"/> counts.</param>
    public void Linger(long until)
    {
        _sender.Join(Left());
        _receiver.Join(Left());

        int Left() => (int)Math.Max(0, until - Environment.TickCount64);
    }

    public void Dispose()
    {
        _closing = true;
        _socket.Dispose();
        _sender.Join();
        _receiver.Join();
        _outbox.Dispose();
    }

    private void Send()
    {
        try
        {
            foreach (TcpFrame frame in _outbox.GetConsumingEnumerable())
            {
                _socket.SendAll(frame.Header());
                _socket.SendAll(frame.Payload);
            }
            _socket.Shutdown(SocketShutdown.Send);
        }
        catch (Exception error) when (error is SocketException or ObjectDisposedException)
        {
            // The receiver tells of it, once it has read why the peer went. Whoever still posts must not wait for a thread that is gone.
            if (!_outbox.IsAddingCompleted) foreach (TcpFrame _ in _outbox.GetConsumingEnumerable()) { }
        }
    }

    private void Receive()
    {
        var header = new byte[TcpFrame.HeaderBytes];
        try
        {
            while (!_left)
            {
                _socket.ReceiveAll(header);
                TcpFrame frame = TcpFrame.Parse(header);
                _socket.ReceiveAll(frame.Payload);
                _left = frame.Kind == TcpKind.Leave;
                _receive(frame);
            }
        }
        catch (Exception error) when (error is SocketException or ObjectDisposedException or EndOfStreamException or InvalidDataException)
        {
            Lose(error);
        }
    }

    private void Lose(Exception error)
    {
        if (!_left && !_closing) _lose(error.Message);
    }
}
