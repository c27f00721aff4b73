using System.Diagnostics;
using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// One rank's part of an <see cref="AttendCall"/>: its chunk of the tokens in, its chunk of the results out. Of what belongs to no token (states, and the decay's gradient
/// per head) every rank gives what it owns and zeros elsewhere, so that their sum is the result.
/// </summary>
internal sealed class AttendOnRank(RankContext rank, AttendInputs inputs, AttendOutputs outputs, AttendOptions options)
{
    private readonly SequencePartition _partition = new(inputs.Tokens, rank.Size);

    private long Start => _partition.Start(rank.Rank);

    private long Length => _partition.Length(rank.Rank);

    public AttendRank Run()
    {
        using Variable q = Leaf(Load("q"));
        using Variable k = Leaf(Load("k"));
        using Variable v = Leaf(Load("v"));
        using Variable? decay = inputs.HasDecay ? Leaf(inputs.LoadDecay(Start, Length, rank.Device)) : null;
        using Variable? initialState = inputs.HasInitialState ? Leaf(inputs.LoadState("initial_state", rank.Device)) : null;
        using Tensor? dO = inputs.HasGradient ? Load("do") : null;
        using Tensor? dFinalState = inputs.HasFinalStateGradient ? inputs.LoadState("d_final_state", rank.Device) : null;
        rank.World.Barrier();
        long started = Stopwatch.GetTimestamp();

        (Variable output, Variable? finalState) = Attend(q, k, v, decay, initialState);
        using (output)
        using (finalState)
        {
            if (dO is not null && dFinalState is not null) Tape.Backward((output, dO), (finalState!, dFinalState));
            else if (dO is not null) Tape.Backward((output, dO));
            rank.Device.Synchronize();
            double seconds = Stopwatch.GetElapsedTime(started).TotalSeconds;

            outputs.PutTokens("o", output.Value, Start);
            if (finalState is not null) outputs.AddState("final_state", finalState.Value);
            if (dO is not null) PutGradients(q, k, v, decay, initialState);
            return new AttendRank(Length, rank.World.Counters.BytesSent, rank.World.Counters.Messages, rank.Device.Memory.Peak, seconds);
        }
    }

    private (Variable Output, Variable? FinalState) Attend(Variable q, Variable k, Variable v, Variable? decay, Variable? initialState)
    {
        var call = new AttentionOptions { Scale = options.Scale, Partition = _partition, Causal = options.Causal, Documents = inputs.Documents };
        if (options.Attention == AttentionKind.Softmax) return (SoftmaxAttention.Apply(q, k, v, rank.World, options.SoftmaxStrategy, call), null);
        LinearAttentionResult result = LinearAttention.ApplyWithState(q, k, v, decay, initialState, rank.World, options.Strategy, call);
        return (result.Output, result.FinalState);
    }

    private Tensor Load(string name) => inputs.LoadTokens(name, Start, Length, rank.Device);

    private Variable Leaf(Tensor value) => inputs.HasGradient ? Variable.Parameter(value) : Variable.Constant(value);

    private void PutGradients(Variable q, Variable k, Variable v, Variable? decay, Variable? initialState)
    {
        outputs.PutTokens("dq", q.Gradient!, Start);
        outputs.PutTokens("dk", k.Gradient!, Start);
        outputs.PutTokens("dv", v.Gradient!, Start);
        if (decay is not null && inputs.DecayIsPerToken) outputs.PutTokens("d_log_decay", decay.Gradient!, Start);
        else if (decay is not null) outputs.PutDecayGradient(rank.Rank, decay.Gradient!);
        if (initialState is not null) outputs.AddState("d_initial_state", initialState.Gradient!);
    }
}
