using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>Which of its two runs a recomputed region is in.</summary>
public enum RegionRun
{
    /// <summary>Forward: every output is computed, nothing is saved.</summary>
    Forward,

    /// <summary>Backward: the same functions again, this time saved. Nobody reads the outputs' values, so a function that makes only an output may leave it unwritten.</summary>
    Replay,
}

/// <summary>
/// (y1, y2, ...) = region(x1, x2, ...)        activation checkpointing (Chen et al., arXiv 1604.06174)
/// Forward runs the region without saving anything; backward runs it again on a tape of its own and then that tape backwards. In between only the inputs are kept, and whatever
/// the caller hands over as kept. The parameters that the region reads are found in its first run and are inputs too: their gradients are added as always, in the same order, so results
/// are the same bits, and complete when the whole function has run.
/// Both runs make the same calls in the same order: messages that the region sends are sent twice, on every rank alike.
/// </summary>
public sealed class Recompute : Function
{
    private readonly Func<Variable[], RegionRun, Variable[]> _region;
    private readonly IDisposable? _kept;
    private readonly CheapValues _cheapValues;
    private StashedInput[] _inputs = [];

    private Recompute(Func<Variable[], RegionRun, Variable[]> region, IDisposable? kept, Variable[] inputs, InputStash? stash, CheapValues cheapValues)
    {
        (_region, _kept, _cheapValues) = (region, kept, cheapValues);
        _inputs = Array.ConvertAll(inputs, i => stash?.Keep(i.Value.Share()) ?? new StashedInput(i.Value.Share(), stash: null));
    }

    /// <param name="inputs">What the region computes from. They stay the caller's.</param>
    /// <param name="region">Makes the outputs from variables with the inputs' values, which it may dispose early. Everything else that it reads must be unchanged when it runs again.</param>
    /// <param name="kept">What the region carries from its first run to its second; freed with this function. Taken over.</param>
    /// <param name="stash">Where the inputs wait for backward; null: where they are.</param>
    /// <param name="cheapValues">What the second run does about values that could be made once more from what it saves.</param>
    public static Variable[] Apply(Variable[] inputs, Func<Variable[], RegionRun, Variable[]> region, IDisposable? kept = null, InputStash? stash = null, CheapValues cheapValues = CheapValues.MadeAgain)
    {
        ArgumentNullException.ThrowIfNull(inputs);
        ArgumentNullException.ThrowIfNull(region);
        try
        {
            using Tape tape = Tape.WithoutGradients();
            Variable[] entered = Array.ConvertAll(inputs, i => tape.Constant(i.Value.Share()));
            Tensor[] outputs = Array.ConvertAll(region(entered, RegionRun.Forward), o => o.Value.Share());
            return new Recompute(region, kept, inputs, stash, cheapValues).Record([.. inputs, .. tape.Parameters], outputs);
        }
        catch
        {
            kept?.Dispose();
            throw;
        }
    }

    protected internal override void Backward(BackwardPass pass)
    {
        using var tape = new Tape { CheapValues = _cheapValues };
        var entered = new Variable[_inputs.Length];
        for (int i = 0; i < entered.Length; i++) entered[i] = tape.Enter(_inputs[i].Take(), pass.Wants(i)); // from here on the replayed functions hold what they need
        Variable[] outputs = _region(entered, RegionRun.Replay);
        foreach (Variable output in outputs) output.Dispose();
        for (int i = 0; i < outputs.Length; i++)
        {
            if (pass.TakeOutput(i) is not { } gradient) continue;
            if (outputs[i].RequiresGradient) outputs[i].Accumulate(gradient);
            else gradient.Dispose();
        }
        tape.Run();
        for (int i = 0; i < entered.Length; i++)
            if (entered[i].TakeGradient() is { } gradient) pass.Give(i, gradient);
    }

    protected internal override void Release()
    {
        base.Release();
        ReleaseInputs();
        _kept?.Dispose();
    }

    private void ReleaseInputs()
    {
        foreach (StashedInput input in _inputs) input.Dispose();
        _inputs = [];
    }
}
