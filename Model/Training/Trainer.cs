using System.Diagnostics;
using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// Training on one rank. All ranks hold the same parameters and the same global batch, compute on their own chunk of every sequence, and take the same step:
/// the loss is the sum of token losses over all ranks / the global number of labels, so the gradient is the plain sum of the ranks' gradients.
/// </summary>
internal sealed class Trainer : IDisposable
{
    private readonly TrainOptions _options;
    private readonly RankContext _rank;
    private readonly ITrainingListener? _listener;
    private readonly TokenStream _stream;
    private readonly BatchSampler _sampler;
    private readonly LearningRateSchedule _schedule;
    private readonly WaitMeter? _meter;
    private readonly SequenceContext _sequence;
    private readonly LinearLlamaModel _model;
    private readonly AdamW _optimizer;
    private readonly GradientSynchronizer _gradients;

    public Trainer(TrainOptions options, TokenStream stream, RankContext rank, ITrainingListener? listener)
    {
        (_options, _stream, _rank, _listener) = (options, stream, rank, listener);
        TrainingRecipe recipe = options.Recipe;
        _sampler = new BatchSampler(stream, unchecked((ulong)options.Seed), recipe.Batch, recipe.SequenceLength);
        _schedule = new LearningRateSchedule(recipe);
        _meter = rank.Device.Kind == DeviceKind.Cpu ? new WaitMeter(rank.World) : null;
        _sequence = new SequenceContext(_meter ?? rank.World, options.Strategy, new SequencePartition(recipe.SequenceLength, rank.Size));
        _model = new LinearLlamaModel(options.Config, rank.Device, options.DType, unchecked((ulong)options.Seed));
        _optimizer = new AdamW(_model.Parameters, new AdamWOptions { Beta1 = recipe.Beta1, Beta2 = recipe.Beta2, WeightDecay = recipe.WeightDecay }, _model.InitialValue);
        _gradients = new GradientSynchronizer(_model.Parameters, _sequence.Group);
    }

    /// <summary>Trains to the last step or until cancelled, and leaves a checkpoint.</summary>
    public TrainingResult Run()
    {
        (long step, string? checkpoint) = _options.Resume ? Restore() : (0, null);
        using MetricsLog? metrics = _rank.Rank == 0 ? MetricsLog.Open(_options.Output, step) : null;
        double? firstLoss = null, lastLoss = null;
        bool cancelled = false;
        while (step < _options.LastStep && !cancelled)
        {
            (StepRecord record, cancelled) = Step(++step);
            metrics?.Write(record);
            _listener?.Step(record);
            firstLoss ??= record.Loss;
            lastLoss = record.Loss;
            bool isLast = cancelled || step == _options.LastStep;
            if (isLast || (_options.CheckpointEvery > 0 && step % _options.CheckpointEvery == 0)) checkpoint = Save(step);
        }
        return new TrainingResult(firstLoss, lastLoss, step, cancelled && step < _options.LastStep, checkpoint!);
    }

    private (StepRecord Record, bool Cancelled) Step(long step)
    {
        long start = Stopwatch.GetTimestamp();
        (double loss, bool cancelled) = ForwardBackward(_sampler.Sample(step));
        if (!double.IsFinite(loss)) throw new LaspException($"the loss is {loss} at step {step}; lower the learning rate ({_options.Recipe.LearningRate}) or go on from an earlier checkpoint");
        _gradients.Sum();
        double squaredNorm = _optimizer.GlobalSquaredNorm();
        double rate = _schedule[step];
        _optimizer.Step(rate, GradientClipping.Factor(squaredNorm, _options.Recipe.ClipNorm));
        _optimizer.ZeroGradients();
        double seconds = Stopwatch.GetElapsedTime(start).TotalSeconds;
        double tokensPerSecond = _options.Recipe.Batch * _options.Recipe.SequenceLength / seconds;
        var record = new StepRecord(
            step,
            loss,
            Math.Sqrt(squaredNorm),
            rate,
            tokensPerSecond,
            tokensPerSecond * _options.Config.FlopsPerToken / 1e12,
            _rank.Device.Memory.Peak,
            _meter?.TakeWaited().TotalSeconds / seconds,
            seconds);
        return (record, cancelled);
    }

    /// <summary>Leaves this rank's gradients at the parameters. Returns the loss over all ranks, and whether any rank was told to stop.</summary>
    private (double Loss, bool Cancelled) ForwardBackward(SequenceBatch batch)
    {
        using var tape = new Tape();
        (Tensor ids, Tensor labels) = batch.Shard(_sequence.Partition, _rank.Rank, _rank.Device);
        using (labels)
        {
            using Variable input = tape.Constant(ids);
            using Variable loss = _model.Loss(input, labels, Math.Max(1, batch.ValidLabels), _sequence);
            using Tensor totals = LossAndStop(loss.Value);
            CommunicationWork reduced = _sequence.Group.AllReduce(totals);
            loss.Backward();
            reduced.Wait();
            double[] values = totals.ToDoubles();
            return (values[0], values[1] > 0);
        }
    }

    /// <summary>[this rank's loss, 1 if it was told to stop]: summed over ranks, both say the same to everybody.</summary>
    private Tensor LossAndStop(Tensor loss)
    {
        double stop = _rank.Cancellation.IsCancellationRequested ? 1 : 0;
        Tensor totals = loss.DType == DType.F64 ? Tensor.FromSpan([0.0, stop], [2], _rank.Device) : Tensor.FromSpan([0f, (float)stop], [2], _rank.Device);
        using Tensor first = totals.Slice(0, 1);
        _rank.Device.Backend.AddScaled(loss, 1, first);
        return totals;
    }

    private TrainerState StateAt(long step) => new()
    {
        Step = step,
        SavedAt = DateTimeOffset.UtcNow,
        Seed = _options.Seed,
        Tokenizer = _options.Tokenizer,
        CorpusTokens = _stream.Count,
        CorpusFingerprint = _stream.Fingerprint,
        Recipe = _options.Recipe,
        DType = _options.DType,
        Device = _rank.Device.Kind.ToString(),
        Ranks = _rank.Size,
        Strategy = _options.Strategy.Name,
    };

    /// <summary>Rank 0 writes; the others go on when it has.</summary>
    private string Save(long step)
    {
        if (_rank.Rank == 0) Checkpoint.Write(_options.Output, StateAt(step), _model, _optimizer);
        _rank.World.Barrier();
        return Checkpoint.FolderOf(_options.Output, step);
    }

    /// <summary>Continues from the newest checkpoint.</summary>
    private (long Step, string Folder) Restore()
    {
        Checkpoint checkpoint = Checkpoint.FindNewest(_options.Output)
            ?? throw new LaspException($"there is no checkpoint in {_options.Output} to resume from; leave out --resume to start anew");
        TrainerState now = StateAt(checkpoint.State.Step);
        now.RequireContinues(checkpoint.State, checkpoint.Folder);
        checkpoint.Load(_model, _optimizer);
        _listener?.Note($"resumed from {checkpoint.Folder}");
        foreach (string difference in now.Differences(checkpoint.State)) _listener?.Note(difference);
        if (checkpoint.State.Step >= _options.LastStep) _listener?.Note($"nothing to do: step {checkpoint.State.Step} is done, and the run ends after {_options.LastStep}");
        _rank.World.Barrier();
        return (checkpoint.State.Step, checkpoint.Folder);
    }

    public void Dispose()
    {
        _gradients.Dispose();
        _optimizer.Dispose();
        _model.Dispose();
    }
}
