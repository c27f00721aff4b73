using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// One node of the tape. An op is a subclass in a file of its own that opens with its equations: a static Apply computes the forward value and records
/// an instance, whose constructor says with <see cref="Save(Variable)"/> what backward will read; <see cref="Backward"/> turns output gradients into input gradients.
/// Inputs that are saved keep their memory; all other values may be freed as soon as they are consumed.
/// </summary>
public abstract class Function
{
    /// <summary>Room for what most functions save.</summary>
    private const int SavedRoom = 4;

    private static long s_clock;
    private IDisposable?[] _saved = [];
    private int _savedCount;
    private Variable[] _inputs = [];
    private Variable? _output; // the only one, or
    private Variable[]? _outputs; // all of them

    internal ReadOnlySpan<Variable> Inputs => _inputs;

    internal ReadOnlySpan<Variable> Outputs => _outputs is not null ? _outputs : _output is not null ? new ReadOnlySpan<Variable>(in _output) : [];

    /// <summary>Execution order over all tapes.</summary>
    internal long Sequence { get; private set; }

    /// <summary>Whether the backward pass, having come to this function, has something to do here.</summary>
    internal virtual bool IsReached
    {
        get
        {
            foreach (Variable output in Outputs)
                if (output.Reached) return true;
            return false;
        }
    }

    /// <summary>
    /// Whether <see cref="Backward"/> may be called twice, first for gradients of values and at the end of the pass for those of parameters (<see cref="Tape.PostponeParameters"/>);
    /// <see cref="BackwardPass.Wants"/> says for which.
    /// </summary>
    internal virtual bool InTwoParts => false;

    /// <summary>Saves the value of an input for backward: kept, or made again by the function that made it. Disposed when this function's backward has run.</summary>
    protected SavedValue Save(Variable input)
    {
        SavedValue saved = SavedValue.Of(input);
        saved.Rest();
        Hold(saved);
        return saved;
    }

    /// <summary>As <see cref="Save(Variable)"/>, for an optional input.</summary>
    protected SavedValue? SaveOptional(Variable? input) => input is null ? null : Save(input);

    /// <summary>Keeps a second handle on a tensor until this function's backward has run.</summary>
    protected Tensor Save(Tensor tensor)
    {
        Tensor handle = tensor.Share();
        Hold(handle);
        return handle;
    }

    /// <summary>
    /// Says that an output costs little to make again from what this function has saved: then no reader keeps it (<see cref="SavedValue"/>), and <see cref="MakeOutput"/> is called for those who ask.
    /// </summary>
    protected Variable MakeAgain(Variable output)
    {
        ArgumentNullException.ThrowIfNull(output);
        if (output is { RequiresGradient: true, Tape.CheapValues: not CheapValues.Kept and var cheap }) output.Source = new ValueSource(this, forEach: cheap == CheapValues.MadeForEach);
        return output;
    }

    /// <summary>
    /// The value of the output that was named to <see cref="MakeAgain"/>, once more and in the same bits; the caller takes it over. Runs before this function's backward, at most once per reader.
    /// </summary>
    protected internal virtual Tensor MakeOutput() => throw new InvalidOperationException($"{GetType().Name} does not make its output again");

    /// <summary>Takes over a tensor that only backward will read.</summary>
    protected Tensor Keep(Tensor tensor)
    {
        Hold(tensor);
        return tensor;
    }

    private void Hold(IDisposable saved)
    {
        if (_savedCount == _saved.Length)
        {
            IDisposable?[] former = _saved;
            _saved = SpareArrays<IDisposable>.Take(Math.Max(SavedRoom, 2 * former.Length));
            former.CopyTo(_saved, 0);
            SpareArrays<IDisposable>.Return(former);
        }
        _saved[_savedCount++] = saved;
    }

    /// <summary>
    /// Reads the output gradients from <paramref name="pass"/> and gives each wanted input its own.
    /// Runs at most once, or once for each part (<see cref="InTwoParts"/>), after every consumer of the outputs.
    /// </summary>
    protected internal abstract void Backward(BackwardPass pass);

    /// <summary>Frees what was saved. Overridden by functions that hold more than tensors; always called exactly once.</summary>
    protected internal virtual void Release()
    {
        for (int i = 0; i < _savedCount; i++) _saved[i]!.Dispose();
        SpareArrays<IDisposable>.Return(_saved);
        (_saved, _savedCount) = ([], 0);
    }

    /// <summary>Lets the inputs go: nothing runs this function any more.</summary>
    internal void Forget()
    {
        SpareArrays<Variable>.Return(_inputs);
        _inputs = [];
    }

    /// <summary>
    /// Puts this function on the tape of its inputs (null inputs are skipped) and wraps its output, which it takes over.
    /// Where no input wants a gradient nothing is recorded: the output is a constant.
    /// </summary>
    protected Variable Record(ReadOnlySpan<Variable?> inputs, Tensor output)
    {
        RecordCore(inputs, [output], token: false);
        return _output!;
    }

    /// <inheritdoc cref="Record(ReadOnlySpan{Variable}, Tensor)"/>
    protected Variable[] Record(ReadOnlySpan<Variable?> inputs, ReadOnlySpan<Tensor> outputs)
    {
        RecordCore(inputs, outputs, token: false);
        return _outputs ?? (_output is null ? [] : [_output]);
    }

    /// <summary>
    /// Records with a single output, a token without value. A later function that takes it as an input has its backward run before this one's, and calls
    /// <see cref="BackwardPass.Reach"/> to say that it has: how two functions share one exchange of messages.
    /// </summary>
    protected Variable RecordToken(ReadOnlySpan<Variable?> inputs)
    {
        RecordCore(inputs, [], token: true);
        return _output!;
    }

    private void RecordCore(ReadOnlySpan<Variable?> inputs, ReadOnlySpan<Tensor> outputs, bool token)
    {
        _inputs = SpareArrays<Variable>.Take(inputs.Length)!;
        bool requiresGradient = false;
        Device? device = null;
        for (int i = 0; i < inputs.Length; i++)
        {
            _inputs[i] = inputs[i] ?? Absent;
            requiresGradient |= _inputs[i].RequiresGradient;
            device ??= inputs[i]?.Device;
        }
        if (device is null && outputs.Length > 0) device = outputs[0].Device; // made from nothing: a constant
        TakeSequence();
        try
        {
            Tape? tape = Tape.Of(_inputs, requiresGradient);
            requiresGradient &= tape?.Records(_inputs) ?? false;
            if (token || outputs.Length == 1) _output = new Variable(token ? null : outputs[0], requiresGradient, tape, device!);
            else _outputs = OutputsOf(outputs, requiresGradient, tape, device!);
            tape?.Add(this, requiresGradient);
        }
        catch
        {
            foreach (Tensor output in outputs) output.Dispose();
            Release();
            throw;
        }
        if (requiresGradient) return;
        Release();
        Forget();
    }

    private static Variable[] OutputsOf(ReadOnlySpan<Tensor> values, bool requiresGradient, Tape? tape, Device device)
    {
        var outputs = new Variable[values.Length];
        for (int i = 0; i < outputs.Length; i++) outputs[i] = new Variable(values[i], requiresGradient, tape, device);
        return outputs;
    }

    private protected void TakeSequence() => Sequence = Interlocked.Increment(ref s_clock);

    /// <summary>Stands for an optional input that was not given.</summary>
    internal static Variable Absent { get; } = new(null, requiresGradient: false, tape: null, device: null!);
}

/// <summary>Which gradients a call of <see cref="Function.Backward"/> is for.</summary>
internal enum GradientPart
{
    All,
    Values,
    Parameters,
}

/// <summary>What a function sees of the backward pass: gradients of its outputs in, gradients of its inputs out.</summary>
public readonly struct BackwardPass
{
    private readonly Function _function;
    private readonly GradientPart _part;

    internal BackwardPass(Function function, GradientPart part) => (_function, _part) = (function, part);

    /// <summary>Gradient of output <paramref name="index"/>; null when none reached it. Borrowed: share it to keep it.</summary>
    public Tensor? Output(int index) => _function.Outputs[index].GradientInValueType();

    /// <summary>As <see cref="Output"/>, but the gradient is the caller's from now on, to be freed as early as its last reader allows.</summary>
    public Tensor? TakeOutput(int index) => _function.Outputs[index].TakeGradient();

    /// <summary>Gradient of output <paramref name="index"/>, which this function cannot do without.</summary>
    public Tensor RequiredOutput(int index) => Output(index) ?? throw new InvalidOperationException($"no gradient reached output {index} of {_function.GetType().Name}");

    /// <summary>Outputs of the function, tokens included.</summary>
    public int OutputCount => _function.Outputs.Length;

    /// <summary>Gradient of a single-element output, [1]; null where it is the 1 that a backward pass starts with by default. Borrowed.</summary>
    public Tensor? OutputFactor(int index) => _function.Outputs[index].IsDefaultRoot ? null : RequiredOutput(index);

    /// <summary>Whether input <paramref name="index"/> wants a gradient from this call.</summary>
    public bool Wants(int index) => _function.Inputs[index] is { RequiresGradient: true } input && (_part == GradientPart.All || input.IsLeaf == (_part == GradientPart.Parameters));

    /// <summary>Uninitialised memory of the shape and dtype of input <paramref name="index"/>, for its gradient.</summary>
    public Tensor Empty(int index)
    {
        Variable input = _function.Inputs[index];
        return Tensor.Empty(input.Shape, input.DType, input.Device);
    }

    /// <summary>
    /// As <see cref="Empty"/>, but in the place of the input's own saved value where nobody else holds it: for functions that read each element before they write its gradient.
    /// The saved value is not to be read afterwards.
    /// </summary>
    public static Tensor InPlaceOf(SavedValue input)
    {
        ArgumentNullException.ThrowIfNull(input);
        return input.TakePlace();
    }

    /// <summary>Adds to the gradient of an input and takes the tensor over (share it first to keep it). An input that wants none drops it.</summary>
    public void Give(int index, Tensor gradient)
    {
        if (Wants(index)) _function.Inputs[index].Accumulate(gradient);
        else gradient.Dispose();
    }

    /// <summary>
    /// The gradient buffer of an input that wants one, to be written in place: overwritten when <paramref name="accumulate"/> is false (its content is undefined),
    /// added to when true. Borrowed. It is of the input's <see cref="Variable.GradientDType"/>.
    /// </summary>
    public Tensor Buffer(int index, out bool accumulate)
    {
        Variable input = _function.Inputs[index];
        return input.GradientBuffer(input.GradientDType, out accumulate);
    }

    /// <summary>The gradient buffer of an input that wants one, for backend calls that add: zeros when fresh, and fp32 (fp64) for every input. Borrowed.</summary>
    public Tensor AddingBuffer(int index)
    {
        Variable input = _function.Inputs[index];
        Tensor buffer = input.GradientBuffer(input.DType.Accumulator(), out bool accumulate);
        if (!accumulate) buffer.Device.Backend.Fill(0, buffer);
        return buffer;
    }

    /// <summary>As <see cref="AddingBuffer"/>, for backend calls that insist on a destination: scratch where the input wants no gradient. Dispose it after the call.</summary>
    public Tensor AddingBufferOrScratch(int index)
    {
        if (Wants(index)) return AddingBuffer(index).Share();
        Variable input = _function.Inputs[index];
        return Tensor.Zeros(input.Shape, input.DType.Accumulator(), input.Device, MemoryCategory.Workspace);
    }

    /// <summary>Tells the function behind a token that its backward is to run.</summary>
    public void Reach(int index) => _function.Inputs[index].MarkReached();
}
