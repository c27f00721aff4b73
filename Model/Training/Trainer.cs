using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// Training on one rank of DP x SP. All ranks train one model (<see cref="ModelReplica"/>), learn the same loss and the sum of their gradients (<see cref="GlobalStep"/>), and take the same step.
/// </summary>
internal sealed class Trainer : IDisposable
{
    private readonly TrainOptions _options;
    private readonly RankContext _rank;
    private readonly ITrainingListener? _listener;
    private readonly IStepProbe? _probe;
    private readonly TokenStream _stream;
    private readonly int _groupBatch;
    private readonly BatchSampler? _sampler;
    private readonly LearningRateSchedule _schedule;
    private readonly ProcessMesh _mesh;
    private readonly WaitAccount _waits;
    private readonly LinearLlamaModel _model;
    private readonly ModelReplica _replica;
    private readonly InputStash? _inputs;
    private readonly GlobalStep _step;
    private readonly StepReports _reports;

    /// <param name="lag">As <see cref="StepReports"/> takes it.</param>
    public Trainer(TrainOptions options, TokenStream stream, RankContext rank, ITrainingListener? listener, IStepProbe? probe = null, int? lag = null)
    {
        (_options, _stream, _rank, _listener, _probe) = (options, stream, rank, listener, probe);
        _reports = new StepReports(rank.Device, lag);
        TrainingRecipe recipe = options.Recipe;
        _schedule = new LearningRateSchedule(recipe);
        _waits = WaitAccount.For(rank.Device);
        _mesh = new ProcessMesh(rank.World, options.DataParallel, rank.Size / options.DataParallel);
        _groupBatch = recipe.Batch / options.DataParallel;
        _sampler = _mesh.SpRank == SequenceScatter.Source ? SamplerOfGroup(_mesh.DpRank) : null;
        _model = new LinearLlamaModel(options.Config, rank.Device, options.DType, unchecked((ulong)options.Seed), options.GradientDType, keepsInitialValues: options.Zero == ZeroStage.None);
        _inputs = BlockInputs.Open(options, rank.Device, _groupBatch * new SequencePartition(recipe.SequenceLength, _mesh.SpSize).Length(_mesh.SpRank), line => listener?.Note(line));
        var sequence = new SequenceContext(new WaitMeter(_mesh.SequenceParallel, _waits), options.Strategy, options.SoftmaxStrategy, new SequencePartition(recipe.SequenceLength, _mesh.SpSize)) { Recomputation = options.Recomputation, Inputs = _inputs };
        var world = new WaitMeter(_mesh.World, _waits);
        var adam = new AdamWOptions { Beta1 = recipe.Beta1, Beta2 = recipe.Beta2, WeightDecay = recipe.WeightDecay };
        _replica = new ModelReplica(_model, world, new WaitMeter(_mesh.Gradients, _waits), adam, options.Zero, options.BucketBytes);
        _step = new GlobalStep(_model, world, sequence, _replica.Gradients);
    }

    private BatchSampler SamplerOfGroup(int group)
    {
        ulong seed = unchecked((ulong)_options.Seed);
        int vocabulary = Tokenizer.Parse(_options.Tokenizer).VocabularySize;
        TokenMasking? masking = _options.Config.IsDecoder ? null : new TokenMasking(seed, _options.Config.MaskTokenId!.Value, vocabulary);
        return new BatchSampler(_stream, seed, _groupBatch, _options.Recipe.SequenceLength, first: group * _groupBatch, masking);
    }

    /// <summary>Bytes that this rank has sent, whether for attention or for gradients.</summary>
    public long BytesSent => _mesh.BytesSent;

    /// <summary>What carries long gradients (<see cref="ICommunicator.Carrier"/>).</summary>
    public string GradientCarrier => _mesh.Gradients.Carrier;

    /// <summary>Trains to the last step or until cancelled, and leaves a checkpoint.</summary>
    public TrainingResult Run()
    {
        (long step, string? checkpoint) = _options.Resume ? Restore() : (0, null);
        using MetricsLog? metrics = _rank.Rank == 0 && !_options.LeavesNothing ? MetricsLog.Open(_options.Output, step) : null;
        double? firstLoss = null, lastLoss = null;
        bool cancelled = false;
        while (step < _options.LastStep && !cancelled)
        {
            try
            {
                Queue(++step);
            }
            catch (Exception failure) when (failure is not GroupFailedException) // where another rank has failed, what arrives may be anything
            {
                TellFinished();
                throw;
            }
            while (_reports.IsDue) Report();
            cancelled |= _rank.Size == 1 && _rank.Cancellation.IsCancellationRequested; // a rank alone need not ask the others
            bool isLast = cancelled || step == _options.LastStep, saves = isLast || (_options.CheckpointEvery > 0 && step % _options.CheckpointEvery == 0);
            if (!saves) continue;
            while (_reports.Any) Report();
            if (!_options.LeavesNothing) checkpoint = Save(step);
        }
        return new TrainingResult(firstLoss, lastLoss, step, cancelled && step < _options.LastStep, checkpoint ?? "");

        void TellFinished()
        {
            try
            {
                while (_reports.Any) Report();
            }
            catch
            {
                // That the last steps cannot be told any more, by the device, to a full disk or to a listener, is no news beside the failure.
            }
        }

        void Report()
        {
            (StepRecord record, bool stop) = Finish(_reports.Take());
            metrics?.Write(record);
            _listener?.Step(record);
            firstLoss ??= record.Loss;
            lastLoss = record.Loss;
            cancelled |= stop;
        }
    }

    /// <summary>Queues all work of a step. What it says is read later, also whether it was skipped: the device changes nothing where loss or gradient are not finite.</summary>
    private void Queue(long step)
    {
        _probe?.Before(step);
        _reports.Begin(step);
        using Tensor numbers = Tensor.Empty([3], _model.DType.Accumulator(), _rank.Device, MemoryCategory.Workspace);
        using Tensor totals = numbers.Slice(0, 2), loss = numbers.Slice(0, 1), squaredNorm = numbers.Slice(2, 1);
        _step.Run(_sampler?.Sample(step), _groupBatch, _rank.Cancellation.IsCancellationRequested, totals);
        _replica.SquaredNorm(squaredNorm);
        double rate = _schedule[step];
        using (Tensor factor = GradientClipping.Factor(squaredNorm, loss, _options.Recipe.ClipNorm)) _replica.Update(rate, factor);
        _waits.EndStep();
        _reports.Add(new QueuedStep(step, rate, _rank.Device.Memory.Peak), numbers);
    }

    private (StepRecord Record, bool Stop) Finish(FinishedStep finished)
    {
        ((long step, double rate, long peak), double loss, bool stop, double squaredNorm, double seconds) = finished;
        if (!double.IsFinite(loss)) throw new LaspException($"the loss is {loss} at step {step}; lower the learning rate ({_options.Recipe.LearningRate}) or go on from an earlier checkpoint");
        if (!double.IsFinite(squaredNorm)) throw new LaspException($"the squared gradient norm is {squaredNorm} at step {step}; lower the learning rate ({_options.Recipe.LearningRate}) or look for a bad batch");
        double tokensPerSecond = _options.Recipe.Batch * _options.Recipe.SequenceLength / seconds;
        var record = new StepRecord(
            step,
            loss,
            Math.Sqrt(squaredNorm),
            rate,
            tokensPerSecond,
            tokensPerSecond * _options.Config.FlopsPerToken(_options.Recipe.SequenceLength) / 1e12,
            peak,
            _waits.TakeStep().TotalSeconds / seconds,
            seconds);
        return (record, stop);
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
        GradientDType = _options.GradientDType,
        Device = _rank.Device.Kind.ToString(),
        Ranks = _mesh.SpSize,
        DataParallel = _options.DataParallel,
        Zero = (int)_options.Zero,
        Strategy = _options.Strategy.Name,
        SoftmaxStrategy = _options.SoftmaxStrategy.Name,
        Recomputation = _options.Recomputation.ToString(),
    };

    /// <summary>Rank 0 writes, the others hand it what it lacks; they go on when it has.</summary>
    private string Save(long step)
    {
        if (_rank.Rank == 0) Checkpoint.Write(_options.Output, StateAt(step), _model.Config, _replica);
        else Checkpoint.Contribute(_replica);
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
        checkpoint.Load(_model, _replica);
        _listener?.Note($"resumed from {checkpoint.Folder}");
        foreach (string difference in now.Differences(checkpoint.State)) _listener?.Note(difference);
        if (checkpoint.State.Step >= _options.LastStep) _listener?.Note($"nothing to do: step {checkpoint.State.Step} is done, and the run ends after {_options.LastStep}");
        _rank.World.Barrier();
        return (checkpoint.State.Step, checkpoint.Folder);
    }

    public void Dispose()
    {
        _reports.Dispose();
        _replica.Dispose();
        _inputs?.Dispose();
        _model.Dispose();
        _mesh.Dispose();
        _waits.Dispose();
    }
}
