using LaspNative.Autograd;

namespace LaspNative.Model;

/// <summary>When a forward pass reads a model's parameters: some before the blocks, those of each block when it comes to it, and some behind the blocks. A parameter that is read twice stands where it is read first.</summary>
internal sealed class ParameterOrder
{
    /// <summary>The reader of what is read before the blocks.</summary>
    public const int BeforeBlocks = -1;

    private readonly Dictionary<NamedParameter, int> _readers = [];

    public ParameterOrder(IReadOnlyList<NamedParameter> before, IReadOnlyList<IReadOnlyList<NamedParameter>> blocks, IReadOnlyList<NamedParameter> behind)
    {
        Blocks = blocks;
        Outside = [.. before, .. behind];
        foreach (NamedParameter parameter in before) _readers.Add(parameter, BeforeBlocks);
        for (int block = 0; block < blocks.Count; block++)
            foreach (NamedParameter parameter in blocks[block]) _readers.Add(parameter, block);
        foreach (NamedParameter parameter in behind) _readers.Add(parameter, blocks.Count);
    }

    /// <summary>Each block's own, in the order of the blocks.</summary>
    public IReadOnlyList<IReadOnlyList<NamedParameter>> Blocks { get; }

    /// <summary>Those that belong to no block.</summary>
    public IReadOnlyList<NamedParameter> Outside { get; }

    /// <summary>Who reads a parameter first: <see cref="BeforeBlocks"/>, a block, or the number of blocks: behind them.</summary>
    public int FirstReader(NamedParameter parameter) => _readers[parameter];
}
