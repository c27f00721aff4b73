using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// The functions of one forward pass in the order in which they ran. Backward walks it from the end: no recursion, no search.
/// Make one per step (<c>using var tape = new Tape();</c>) and everything recorded is freed with it; where nobody makes one, functions start one themselves,
/// tapes merge when their values meet, and the last disposed value closes it. A tape is used by one thread.
/// </summary>
public sealed class Tape : IDisposable
{
    private readonly bool _isExplicit;
    private List<Function> _functions = [];
    private List<Variable> _variables = [];
    private Tape? _mergedInto;
    private int _openHandles;
    private bool _spent;

    public Tape() : this(isExplicit: true) { }

    private Tape(bool isExplicit) => _isExplicit = isExplicit;

    internal Tape Root
    {
        get
        {
            Tape root = this;
            while (root._mergedInto is { } next) root = next;
            return root;
        }
    }

    /// <summary>Functions recorded and not yet run backwards.</summary>
    public int Count => Root._functions.Count;

    /// <summary>A value without gradient that is freed with the tape. Takes ownership. Functions of it record on this tape.</summary>
    public Variable Constant(Tensor value)
    {
        ArgumentNullException.ThrowIfNull(value);
        var variable = new Variable(value, requiresGradient: false, Root, value.Device);
        Root.Own(variable);
        return variable;
    }

    /// <summary>The tape on which a function of these inputs belongs: theirs, merged if they have several.</summary>
    internal static Tape Of(ReadOnlySpan<Variable> inputs)
    {
        Tape? tape = null;
        foreach (Variable input in inputs)
        {
            if (input.Tape is not { } other || other == tape) continue;
            tape = tape is null ? other : Merge(tape, other);
        }
        return tape ?? new Tape(isExplicit: false);
    }

    private static Tape Merge(Tape a, Tape b)
    {
        if (a._isExplicit && b._isExplicit) throw new LaspException("two inputs of one function are on two tapes; record one step on one tape");
        (Tape into, Tape from) = b._isExplicit ? (b, a) : (a, b);
        into._functions = [.. into._functions.Concat(from._functions).OrderBy(f => f.Sequence)];
        into._variables.AddRange(from._variables);
        into._openHandles += from._openHandles;
        (from._functions, from._variables, from._mergedInto) = ([], [], into);
        return into;
    }

    internal void Add(Function function, bool requiresGradient)
    {
        if (_spent) throw new LaspException("this tape already ran backwards; record the next step on a new tape");
        foreach (Variable output in function.Outputs) Own(output);
        if (requiresGradient) _functions.Add(function);
        else function.Release();
    }

    private void Own(Variable variable)
    {
        _variables.Add(variable);
        _openHandles++;
    }

    /// <summary>Runs backwards from several outputs of one tape at once, each with its gradient (null: 1 for a single element).</summary>
    public static void Backward(params ReadOnlySpan<(Variable Output, Tensor? Gradient)> roots)
    {
        Tape? tape = null;
        foreach ((Variable output, Tensor? gradient) in roots)
        {
            if (output.Tape is not { } own || !output.RequiresGradient) throw new LaspException("backward needs the output of a recorded function: this variable is a leaf, or nothing before it wants a gradient");
            if (tape is not null && own != tape) throw new LaspException("the outputs given to one backward pass are on different tapes");
            tape = own;
            Seed(output, gradient);
        }
        tape?.Run();
    }

    private static void Seed(Variable output, Tensor? gradient)
    {
        if (gradient is not null)
        {
            output.Accumulate(gradient.Share());
            return;
        }
        if (output.Shape.Count != 1) throw new LaspException($"backward from a variable of shape {output.Shape} needs its gradient; only a single element has a default, 1");
        Tensor one = Tensor.Empty(output.Shape, output.DType, output.Device);
        output.Device.Backend.Fill(1, one);
        output.Accumulate(one);
    }

    private void Run()
    {
        if (_spent) throw new LaspException("this tape already ran backwards; record the step again for another backward pass");
        _spent = true;
        for (int i = _functions.Count - 1; i >= 0; i--)
        {
            Function function = _functions[i];
            _functions.RemoveAt(i);
            try
            {
                if (function.Outputs.Any(o => o.Reached)) function.Backward(new BackwardPass(function));
            }
            finally
            {
                function.Release();
                foreach (Variable output in function.Outputs) output.ZeroGradient();
            }
        }
    }

    internal void HandleDisposed()
    {
        if (--_openHandles == 0 && !_isExplicit) Dispose();
    }

    /// <summary>Frees everything recorded: saved tensors, values, gradients of intermediate values.</summary>
    public void Dispose()
    {
        foreach (Function function in _functions) function.Release();
        _functions.Clear();
        foreach (Variable variable in _variables)
        {
            variable.ReleaseValue();
            variable.ZeroGradient();
        }
        _variables.Clear();
    }
}
