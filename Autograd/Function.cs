using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// One node of the tape. An op is a subclass in a file of its own that opens with its equations: a static Apply computes the forward value and records
/// an instance, whose constructor says with <see cref="Save(Variable)"/> what backward will read; <see cref="Backward"/> turns output gradients into input gradients.
/// Inputs that are saved keep their memory; all other values may be freed as soon as they are consumed.
/// </summary>
public abstract class Function
{
    private static long s_clock;
    private IDisposable[] _saved = [];
    private int _savedCount;

    internal Variable[] Inputs { get; private set; } = [];

    internal Variable[] Outputs { get; private set; } = [];

    /// <summary>Execution order over all tapes.</summary>
    internal long Sequence { get; private set; }

    /// <summary>Whether the backward pass, having come to this function, has something to do here.</summary>
    internal virtual bool IsReached => Outputs.Any(o => o.Reached);

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
    /// Says that an output costs little to make again from what this function has saved: then no reader keeps it (<see cref="SavedValue"/>). <paramref name="make"/> runs before this function's backward,
    /// at most once per reader, must give the same bits, and its tensor is taken over.
    /// </summary>
    protected static Variable MakeAgain(Variable output, Func<Tensor> make)
    {
        ArgumentNullException.ThrowIfNull(output);
        if (output is { RequiresGradient: true, Tape.CheapValues: not CheapValues.Kept and var cheap }) output.Source = new ValueSource(make, forEach: cheap == CheapValues.MadeForEach);
        return output;
    }

    /// <summary>Takes over a tensor that only backward will read.</summary>
    protected Tensor Keep(Tensor tensor)
    {
        Hold(tensor);
        return tensor;
    }

    private void Hold(IDisposable saved)
    {
        if (_savedCount == _saved.Length) Array.Resize(ref _saved, _savedCount + 3);
        _saved[_savedCount++] = saved;
    }

    /// <summary>
    /// Reads the output gradients from <paramref name="pass"/> and gives each wanted input its own.
    /// Runs at most once, after every consumer of the outputs.
    /// </summary>
    protected internal abstract void Backward(BackwardPass pass);

    /// <summary>Frees what was saved. Overridden by functions that hold more than tensors; always called exactly once.</summary>
    protected internal virtual void Release()
    {
        foreach (IDisposable saved in _saved.AsSpan(0, _savedCount)) saved.Dispose();
        (_saved, _savedCount) = ([], 0);
    }

    /// <summary>
    /// Puts this function on the tape of its inputs (null inputs are skipped) and wraps its output, which it takes over.
    /// Where no input wants a gradient nothing is recorded: the output is a constant.
    /// </summary>
    protected Variable Record(ReadOnlySpan<Variable?> inputs, Tensor output) => Record(inputs, [output])[0];

    /// <inheritdoc cref="Record(ReadOnlySpan{Variable}, Tensor)"/>
    protected Variable[] Record(ReadOnlySpan<Variable?> inputs, ReadOnlySpan<Tensor> outputs) => RecordCore(inputs, outputs, token: false);

    /// <summary>
    /// Records with one output more, the last: a token without value. A later function that takes it as an input has its backward run before this one's, and calls
    /// <see cref="BackwardPass.Reach"/> to say that it has: how two functions share one exchange of messages.
    /// </summary>
    protected Variable[] RecordToken(ReadOnlySpan<Variable?> inputs, ReadOnlySpan<Tensor> outputs) => RecordCore(inputs, outputs, token: true);

    private Variable[] RecordCore(ReadOnlySpan<Variable?> inputs, ReadOnlySpan<Tensor> outputs, bool token)
    {
        Inputs = new Variable[inputs.Length];
        for (int i = 0; i < inputs.Length; i++) Inputs[i] = inputs[i] ?? Absent;
        TakeSequence();
        bool requiresGradient = Inputs.Any(i => i.RequiresGradient);
        Device device = Inputs.First(i => i != Absent).Device;
        try
        {
            Tape? tape = Tape.Of(Inputs, requiresGradient);
            requiresGradient &= tape?.Records(Inputs) ?? false;
            Outputs = new Variable[outputs.Length + (token ? 1 : 0)];
            for (int i = 0; i < Outputs.Length; i++)
                Outputs[i] = new Variable(i < outputs.Length ? outputs[i] : null, requiresGradient, tape, device);
            tape?.Add(this, requiresGradient);
        }
        catch
        {
            foreach (Tensor output in outputs) output.Dispose();
            Release();
            throw;
        }
        if (!requiresGradient) Release();
        return Outputs;
    }

    private protected void TakeSequence() => Sequence = Interlocked.Increment(ref s_clock);

    /// <summary>Stands for an optional input that was not given.</summary>
    internal static Variable Absent { get; } = new(null, requiresGradient: false, tape: null, device: null!);
}

/// <summary>What a function sees of the backward pass: gradients of its outputs in, gradients of its inputs out.</summary>
public readonly struct BackwardPass
{
    private readonly Function _function;

    internal BackwardPass(Function function) => _function = function;

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

    /// <summary>Whether input <paramref name="index"/> wants a gradient.</summary>
    public bool Wants(int index) => _function.Inputs[index].RequiresGradient;

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
