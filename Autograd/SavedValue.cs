using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>What becomes of values that cost little to make again from what the function that made them saves.</summary>
public enum CheapValues
{
    /// <summary>Made again when the first of their readers asks in backward, freed after the last.</summary>
    MadeAgain,

    /// <summary>Made again for every reader: no memory beside the one that reads.</summary>
    MadeForEach,

    /// <summary>Kept like all others.</summary>
    Kept,
}

/// <summary>
/// A variable's value as backward will read it. Most are a second handle on the value's memory. What a cheap function made of something that it saves itself (<see cref="Function.MakeAgain"/>) is not
/// kept but made again (<see cref="CheapValues"/>), the same bits: activations of norms, feature maps and gates then cost no memory between the passes.
/// </summary>
public sealed class SavedValue : IDisposable
{
    private readonly ValueSource? _source;
    private Tensor? _tensor;
    private bool _disposed;

    private SavedValue(Tensor tensor, ValueSource? source)
    {
        (_tensor, _source) = (tensor, source);
        source?.AddReader();
    }

    /// <summary>The value of a variable, there until <see cref="Rest"/>.</summary>
    public static SavedValue Of(Variable variable)
    {
        ArgumentNullException.ThrowIfNull(variable);
        return new SavedValue(variable.Value.Share(), variable.Source);
    }

    /// <summary>A tensor that is kept as it is. Taken over.</summary>
    public static SavedValue Of(Tensor tensor)
    {
        ArgumentNullException.ThrowIfNull(tensor);
        return new SavedValue(tensor, source: null);
    }

    /// <summary>The value, made again if need be. Borrowed.</summary>
    public Tensor Tensor
    {
        get
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            return _tensor ??= _source!.Read();
        }
    }

    /// <summary>Uninitialised memory of the value's shape and type, for its gradient: the value's own where nobody else holds it, which ends the value for its reader.</summary>
    internal Tensor TakePlace()
    {
        Tensor value = Tensor;
        return value.IsShared ? Tensor.Empty(value.Shape, value.DType, value.Device) : value.Share();
    }

    /// <summary>Lets the memory go of a value that can be made again. To be called when the forward pass is done with it.</summary>
    public void Rest()
    {
        if (_source is null) return;
        _tensor?.Dispose();
        _tensor = null;
    }

    /// <summary>Makes a value again that was let go. To be called in backward where the value is read only when the function that makes it has run backwards.</summary>
    public void Wake() => _ = Tensor;

    public void Dispose()
    {
        if (_disposed) return;
        _disposed = true;
        _tensor?.Dispose();
        _source?.EndReader();
    }
}

/// <summary>How the function that made a value makes it again: for all who read it, freed when the last has, or for each of them.</summary>
internal sealed class ValueSource(Function maker, bool forEach)
{
    private int _readers;
    private Tensor? _made;

    public void AddReader() => _readers++;

    public Tensor Read() => forEach ? maker.MakeOutput() : (_made ??= maker.MakeOutput()).Share();

    public void EndReader()
    {
        if (--_readers > 0) return;
        _made?.Dispose();
        _made = null;
    }
}
