using LaspNative.Collectives;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Collectives;

/// <summary>Whatever carries them, gathers and relays give their memory back once: the second time it may be another message's.</summary>
public class BlocksInFlightTests
{
    private sealed class Gather : BlockGather
    {
        public int Ends { get; private set; }

        public override Tensor Blocks => throw new InvalidOperationException("there are none");

        public override void Wait(int first, int count) { }

        protected override void Dispose(bool disposing) => Ends++;
    }

    private sealed class Relay : BlockRelay
    {
        public int Ends { get; private set; }

        public override Tensor? Block => null;

        public override void Wait(int count) { }

        public override void Send(Tensor pieces) { }

        protected override void Dispose(bool disposing) => Ends++;
    }

    [Fact]
    public void They_end_once()
    {
        (var gather, var relay) = (new Gather(), new Relay());
        for (int time = 0; time < 2; time++)
        {
            gather.Dispose();
            relay.Dispose();
            Assert.Equal((1, 1), (gather.Ends, relay.Ends));
        }
    }
}
