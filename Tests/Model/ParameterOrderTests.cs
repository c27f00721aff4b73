using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Model;

/// <summary>A forward pass in which every parameter's memory comes when the order says that it is read, and a block's goes when the block is done: what is read at another time is not there.</summary>
public class ParameterOrderTests
{
    private const int Tokens = 16;

    [Theory]
    [InlineData(true, NormKind.Rms)]
    [InlineData(false, NormKind.Rms)]
    [InlineData(false, NormKind.SimpleRms)]
    public void Parameters_are_read_when_the_model_says_so(bool tied, NormKind norm) => World.Run(new WorldOptions(DeviceKind.Cpu, 1), rank =>
    {
        LinearLlamaConfig config = StepOnRanks.Small with { NumHiddenLayers = 3, LayerTypes = LayerPattern.Parse("LLN", 3), TieWordEmbeddings = tied, Norm = norm };
        using var model = new LinearLlamaModel(config, rank.Device, DType.F32, seed: 5);
        model.Residency = new JustInTime(model);
        var sequence = new SequenceContext(rank.World, Lasp2.Default, SoftmaxAllGather.Default, new SequencePartition(Tokens, 1));
        using var tape = new Tape();
        using Variable ids = tape.Constant(Tensor.FromSpan(new int[Tokens], [1, Tokens], rank.Device));
        using Tensor labels = Tensor.FromSpan(new int[Tokens], [Tokens], rank.Device), scale = Tensor.FromSpan([1f], [1], rank.Device);
        using Variable loss = model.Loss(ids, labels, scale, sequence);
        Assert.True(double.IsFinite(loss.Value.ToDoubles()[0]));
        Assert.Equal(model.Parameters.Select(p => p.Name), InOrder(model).Select(p => p.Name));
    });

    /// <summary>All parameters, by their first reader.</summary>
    private static IEnumerable<NamedParameter> InOrder(LinearLlamaModel model) => model.ReadingOrder.Blocks.SelectMany(b => b).Concat(model.ReadingOrder.Outside).OrderBy(model.ReadingOrder.FirstReader);

    private sealed class JustInTime : IParameterResidency
    {
        private readonly LinearLlamaModel _model;

        public JustInTime(LinearLlamaModel model)
        {
            _model = model;
            foreach (NamedParameter parameter in model.Parameters) parameter.Variable.Value.EvictMemory();
        }

        public void EnterModel(Variable ids) => Bring(ParameterOrder.BeforeBlocks);

        public void EnterBlock(int block, Variable stream) => Bring(block);

        public void LeaveBlock(int block, Variable stream)
        {
            foreach (NamedParameter parameter in _model.ReadingOrder.Blocks[block]) parameter.Variable.Value.EvictMemory();
            if (block == _model.Config.NumHiddenLayers - 1) Bring(block + 1);
        }

        private void Bring(int reader)
        {
            foreach (NamedParameter parameter in _model.Parameters.Where(p => _model.ReadingOrder.FirstReader(p) == reader))
            {
                parameter.Variable.Value.RestoreMemory();
                parameter.Variable.Device.Backend.Fill(0.1, parameter.Variable.Value);
            }
        }
    }
}
