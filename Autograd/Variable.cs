using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// A tensor on the tape: its value, and after a backward pass its gradient.
/// A leaf (parameter or constant) owns its value and keeps its gradient until <see cref="ZeroGradient"/>.
/// An intermediate value may be disposed as soon as its last consumer has been applied: what backward needs was saved, the rest is freed at once.
/// </summary>
public sealed class Variable : IDisposable
{
    private readonly Tape? _tape;
    private Tensor? _value;
    private int _pendingUses;
    private bool _disposed;

    internal Variable(Tensor? value, bool requiresGradient, Tape? tape, Device device, DType? gradient = null)
    {
        _value = value;
        _tape = tape;
        RequiresGradient = requiresGradient;
        GradientDType = gradient ?? (IsLeaf ? DType.Accumulator() : DType);
        Device = device;
    }

    /// <summary>The value. Throws for a token, which carries only order (<see cref="Function.RecordToken"/>).</summary>
    public Tensor Value => _value ?? throw new InvalidOperationException("this variable carries an order between two functions and has no value");

    public Shape Shape => _value?.Shape ?? [];

    public DType DType => _value?.DType ?? DType.F32;

    public Device Device { get; }

    public bool RequiresGradient { get; }

    /// <summary>The type that gradients are collected in. Leaves collect theirs over whole steps: in fp32 (fp64 for F64), or what <see cref="Parameter"/> was told.</summary>
    public DType GradientDType { get; }

    /// <summary>
    /// The gradient; null before a backward pass, or when none reached this variable. Owned by the variable. Of <see cref="GradientDType"/>; of a leaf that functions have added to in fp32,
    /// such as a norm's weight, it may be fp32 in any case.
    /// </summary>
    public Tensor? Gradient { get; private set; }

    /// <summary>
    /// Of a leaf: called by a backward pass when the last function recorded on it has run, so that its gradient is complete while the rest of the pass goes on.
    /// <see cref="Gradient"/> is null where none reached it. A parameter used in two places is complete after both; where a function runs a tape of its own inside its backward,
    /// when that whole function has run.
    /// </summary>
    public Action<Variable>? GradientCompleted { get; set; }

    /// <summary>True for parameters and constants made by the caller.</summary>
    public bool IsLeaf => _tape is null;

    /// <summary>The tape this variable is on; null for leaves, which join any tape.</summary>
    internal Tape? Tape => _tape?.Root;

    /// <summary>How the value is made again where backward needs it; null: it is kept.</summary>
    internal ValueSource? Source { get; set; }

    /// <summary>True once the running backward pass has reached this variable, also where it carries no tensor.</summary>
    internal bool Reached { get; private set; }

    /// <summary>True while the gradient is the 1 that a backward pass starts with by default, and nothing else.</summary>
    internal bool IsDefaultRoot { get; private set; }

    /// <summary>A leaf that wants a gradient. Takes ownership of <paramref name="value"/>.</summary>
    /// <param name="gradient">The type that matrix products collect the gradient in: the value's own, or (null) fp32 (fp64), which sums of many products ask for.</param>
    public static Variable Parameter(Tensor value, DType? gradient = null)
    {
        ArgumentNullException.ThrowIfNull(value);
        if (gradient is { } type && type != value.DType && type != value.DType.Accumulator())
            throw new LaspException($"the gradient of {value.DType} values cannot be collected in {type}; use their type or {value.DType.Accumulator()}");
        return new Variable(value, requiresGradient: true, tape: null, value.Device, gradient);
    }

    /// <summary>A leaf without gradient. Takes ownership of <paramref name="value"/>.</summary>
    public static Variable Constant(Tensor value)
    {
        ArgumentNullException.ThrowIfNull(value);
        return new Variable(value, requiresGradient: false, tape: null, value.Device);
    }

    /// <summary>
    /// Runs the tape backwards from this variable, adding to the gradients of all leaves reached. <paramref name="dOutput"/> is the gradient of this
    /// variable (it stays the caller's); it may be left out for a single element, where it is 1. The tape is spent afterwards.
    /// Throws <see cref="LaspException"/> when its shape is another, when it is missing for more elements than one, and on a tape that already ran.
    /// </summary>
    public void Backward(Tensor? dOutput = null) => Autograd.Tape.Backward((this, dOutput));

    /// <summary>Frees the gradient; the next backward pass starts from none.</summary>
    public void ZeroGradient()
    {
        Gradient?.Dispose();
        Gradient = null;
        Reached = false;
        IsDefaultRoot = false;
    }

    /// <summary>Hands the gradient over to the caller, and leaves none; null when there is none.</summary>
    public Tensor? DetachGradient()
    {
        Tensor? gradient = Gradient;
        Gradient = null;
        ZeroGradient();
        return gradient;
    }

    /// <summary>Puts a gradient of this shape, or of as many elements, in the place of the present one. Takes ownership.</summary>
    public void PutGradient(Tensor gradient)
    {
        ArgumentNullException.ThrowIfNull(gradient);
        if (!IsLeaf || gradient.Count != Shape.Count || (gradient.DType != DType && gradient.DType != DType.Accumulator()))
            throw new LaspException($"a gradient {gradient.DType} {gradient.Shape} cannot be put at a variable {DType} {Shape}; it takes a leaf, and as many elements of {DType.Accumulator()} or {DType}");
        ZeroGradient();
        if (gradient.Shape == Shape) Gradient = gradient;
        else using (gradient) Gradient = gradient.View(Shape);
    }

    /// <summary>Moves a leaf to other memory: <paramref name="value"/>, of the same shape and type, is its value from here on. Takes ownership and frees the former value.</summary>
    public void ReplaceValue(Tensor value)
    {
        ArgumentNullException.ThrowIfNull(value);
        if (!IsLeaf || value.Shape != Shape || value.DType != DType)
            throw new LaspException($"a variable {DType} {Shape} cannot take {value.DType} {value.Shape} as its value; it must be a leaf, and type and shape must stay");
        _value?.Dispose();
        _value = value;
    }

    /// <summary>A function of this variable was recorded.</summary>
    internal void AddUse() => _pendingUses++;

    /// <summary>A function of this variable was forgotten.</summary>
    internal void EndUse() => _pendingUses--;

    /// <summary>Whether this leaf has someone to tell and no recorded function of it is left.</summary>
    internal bool IsGradientComplete => _pendingUses == 0 && GradientCompleted is not null && IsLeaf;

    /// <summary>Adds a contribution and takes ownership of it. Memory shared with someone else is never written.</summary>
    internal void Accumulate(Tensor contribution)
    {
        Reached = true;
        if (Gradient is null && contribution.Shape == Shape && contribution.DType == GradientDType && !(IsLeaf && contribution.IsShared))
        {
            Gradient = contribution;
            return;
        }
        using (contribution)
        {
            if (contribution.Shape != Shape) throw new InvalidOperationException($"a gradient of shape {contribution.Shape} does not fit a variable of shape {Shape}");
            Tensor target = GradientBuffer(GradientDType, out bool accumulate);
            if (accumulate) Device.Backend.AddScaled(contribution, 1, target);
            else Device.Backend.Cast(contribution, target);
        }
    }

    /// <summary>
    /// The buffer of this type to write a gradient into; <paramref name="accumulate"/> says whether it holds one already, to be added to. What was collected so far
    /// in another type, or in memory that someone else sees too, moves to memory of its own first.
    /// </summary>
    internal Tensor GradientBuffer(DType dtype, out bool accumulate)
    {
        Reached = true;
        IsDefaultRoot = false;
        accumulate = Gradient is not null;
        if (Gradient is { IsShared: false } own && own.DType == dtype) return own;
        Tensor fresh = Tensor.Empty(Shape, dtype, Device, IsLeaf ? MemoryCategory.Gradients : MemoryCategory.Activations);
        if (Gradient is not null)
        {
            Device.Backend.Cast(Gradient, fresh);
            Gradient.Dispose();
        }
        return Gradient = fresh;
    }

    /// <summary>The gradient in the type of the value, as the function that made the value reads it.</summary>
    internal Tensor? GradientInValueType()
    {
        if (Gradient is not null && Gradient.DType != DType) GradientBuffer(DType, out _);
        return Gradient;
    }

    /// <summary>As <see cref="DetachGradient"/>, in the type of the value.</summary>
    internal Tensor? TakeGradient()
    {
        GradientInValueType();
        return DetachGradient();
    }

    internal void MarkReached() => Reached = true;

    /// <summary>Starts a backward pass at this single element, with gradient 1.</summary>
    internal void SeedWithOne()
    {
        bool isFirst = Gradient is null;
        Tensor one = Tensor.Empty(Shape, DType, Device);
        Device.Backend.Fill(1, one);
        Accumulate(one);
        IsDefaultRoot = isFirst;
    }

    /// <summary>Frees the value. Disposing the last handle of a tape that nobody made explicitly also closes that tape.</summary>
    public void Dispose()
    {
        if (_disposed) return;
        ReleaseValue();
        if (IsLeaf) ZeroGradient();
        else Tape!.HandleDisposed();
    }

    internal void ReleaseValue()
    {
        _disposed = true;
        _value?.Dispose();
    }
}
