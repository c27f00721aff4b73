using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// The functions of one forward pass in the order in which they ran. Backward walks it from the end: no recursion, no search.
/// Make one per step (<c>using var tape = new Tape();</c>, with the step's inputs as its <see cref="Constant"/>s) and everything recorded is freed with it.
/// Where nobody makes one, functions start one themselves, tapes merge when their values meet, and the last disposed value closes it. A tape is used by one thread.
/// </summary>
public sealed class Tape : IDisposable
{
    private enum State
    {
        Recording,
        Spent,
        Closed,
    }

    /// <summary>Backward passes that run inside one another on this thread: a function may run a tape of its own.</summary>
    [ThreadStatic]
    private static int s_depth;

    /// <summary>Leaves to tell that their gradients are complete, once the function of the outermost pass has run.</summary>
    [ThreadStatic]
    private static List<Variable>? s_completed;

    /// <summary>The lists of the tape that was disposed last, emptied: the next one need not grow its own.</summary>
    [ThreadStatic]
    private static (List<Function>, List<Variable>)? s_spare;

    private readonly bool _isExplicit;
    private readonly bool _records;
    private readonly List<Variable> _parameters = [];
    private readonly Queue<Function> _postponed = new(); // whose first part has run
    private List<Function> _functions;
    private List<Variable> _variables;
    private Tape? _mergedInto;
    private int _openHandles;
    private State _state;
    private bool _postpones;

    public Tape() : this(isExplicit: true, records: true) { }

    private Tape(bool isExplicit, bool records)
    {
        (_isExplicit, _records) = (isExplicit, records);
        (_functions, _variables) = s_spare ?? ([], []);
        s_spare = null;
    }

    /// <summary>A tape on which functions only compute: nothing is saved for backward, whatever parameters they read.</summary>
    public static Tape WithoutGradients() => new(isExplicit: true, records: false);

    /// <summary>What becomes of values on this tape that cost little to make again.</summary>
    public CheapValues CheapValues { get; init; }

    internal Tape Root
    {
        get
        {
            Tape root = this;
            while (root._mergedInto is { } next) root = next;
            if (root != this) _mergedInto = root;
            return root;
        }
    }

    /// <summary>Functions recorded and not yet run backwards.</summary>
    public int Count => _functions.Count;

    /// <summary>Leaves that want a gradient and that functions on a tape without gradients have read, each once.</summary>
    internal IReadOnlyList<Variable> Parameters => _parameters;

    /// <summary>A value without gradient that is freed with the tape. Takes ownership. Functions of it record on this tape.</summary>
    public Variable Constant(Tensor value)
    {
        ArgumentNullException.ThrowIfNull(value);
        return Enter(value, requiresGradient: false);
    }

    /// <summary>As <see cref="Constant"/>, for a value that may want a gradient: computed elsewhere, its gradient is of the value's type and stays until the tape is disposed.</summary>
    internal Variable Enter(Tensor value, bool requiresGradient)
    {
        ThrowIfNotRecording();
        var variable = new Variable(value, requiresGradient && _records, this, value.Device);
        Own(variable);
        return variable;
    }

    /// <summary>Whether functions are recorded here for backward. Where they are not, the parameters among a function's inputs are noted.</summary>
    internal bool Records(ReadOnlySpan<Variable> inputs)
    {
        if (_records) return true;
        foreach (Variable input in inputs)
            if (input is { IsLeaf: true, RequiresGradient: true } && !_parameters.Contains(input)) _parameters.Add(input);
        return false;
    }

    /// <summary>
    /// The tape on which a function of these inputs belongs: theirs, merged if they have several. Where none has one: a new one if there is a gradient to
    /// compute, else null.
    /// </summary>
    internal static Tape? Of(ReadOnlySpan<Variable> inputs, bool requiresGradient)
    {
        Tape? tape = null;
        foreach (Variable input in inputs)
        {
            if (input.Tape is not { } other || other == tape) continue;
            other.ThrowIfNotRecording();
            tape = tape is null ? other : Merge(tape, other);
        }
        return tape ?? (requiresGradient ? new Tape(isExplicit: false, records: true) : null);
    }

    /// <summary>Moves the implicit, else the shorter, of two tapes into the other.</summary>
    private static Tape Merge(Tape a, Tape b)
    {
        if (a._isExplicit && b._isExplicit) throw new LaspException("two inputs of one function are on two tapes; record one step on one tape");
        bool intoA = a._isExplicit || (!b._isExplicit && a._functions.Count >= b._functions.Count);
        (Tape into, Tape from) = intoA ? (a, b) : (b, a);
        bool follows = into._functions.Count == 0 || from._functions.Count == 0 || into._functions[^1].Sequence < from._functions[0].Sequence;
        into._functions.AddRange(from._functions);
        if (!follows) into._functions.Sort((x, y) => x.Sequence.CompareTo(y.Sequence));
        into._variables.AddRange(from._variables);
        into._openHandles += from._openHandles;
        (from._functions, from._variables, from._mergedInto) = ([], [], into);
        return into;
    }

    internal void Add(Function function, bool requiresGradient)
    {
        foreach (Variable output in function.Outputs) Own(output);
        if (!requiresGradient) return;
        _functions.Add(function);
        foreach (Variable input in function.Inputs) if (input.RequiresGradient) input.AddUse();
    }

    private void Own(Variable variable)
    {
        _variables.Add(variable);
        _openHandles++;
    }

    private void ThrowIfNotRecording()
    {
        if (_state == State.Spent) throw new LaspException("this tape already ran backwards; record the step again, on a new tape");
        if (_state == State.Closed) throw new LaspException("this tape was disposed; record the step on a new one");
    }

    /// <summary>
    /// Runs an action when backward comes to this point of the recording: after the functions recorded later, before those recorded earlier, on the tape of
    /// <paramref name="at"/>. Where that is on no tape, nothing will run backwards and the action is dropped.
    /// </summary>
    public static void WhenBackward(Variable at, Action action)
    {
        ArgumentNullException.ThrowIfNull(at);
        if (at.Tape is not { } tape) return;
        tape.ThrowIfNotRecording();
        tape.Add(new BackwardPoint(action), requiresGradient: true);
    }

    /// <summary>
    /// Of what was recorded up to here, gradients of parameters wait until all others are there. Where one gradient is complete last and has a long way to go, as an embedding's that is summed over ranks,
    /// theirs are what there is to do meanwhile. No bit changes; what they are made of is kept until then. Functions that do not run in parts (<see cref="Function.InTwoParts"/>) do not wait.
    /// </summary>
    public static void PostponeParameters(Variable upTo)
    {
        ArgumentNullException.ThrowIfNull(upTo);
        if (upTo.Tape is { } tape) WhenBackward(upTo, () => tape.Root._postpones = true);
    }

    /// <summary>Runs backwards from several outputs of one tape at once, each with its gradient (null: 1 for a single element).</summary>
    public static void Backward(params ReadOnlySpan<(Variable Output, Tensor? Gradient)> roots)
    {
        Tape? tape = null;
        foreach ((Variable output, Tensor? gradient) in roots)
        {
            if (output.Tape is not { } own || !output.RequiresGradient) throw new LaspException("backward needs the output of a recorded function: this variable is a leaf, or nothing before it wants a gradient");
            if (tape is not null && own != tape) throw new LaspException("the outputs given to one backward pass are on different tapes");
            if (gradient is null && output.Shape.Count != 1) throw new LaspException($"backward from a variable of shape {output.Shape} needs its gradient; only a single element has a default, 1");
            if (gradient is not null && gradient.Shape != output.Shape) throw new LaspException($"a gradient of shape {gradient.Shape} was given to a variable of shape {output.Shape}; they must be equal");
            own.ThrowIfNotRecording();
            tape = own;
        }
        foreach ((Variable output, Tensor? gradient) in roots)
        {
            if (gradient is null) output.SeedWithOne();
            else output.Accumulate(gradient.Share());
        }
        tape?.Run();
    }

    /// <summary>Runs backwards from whatever has a gradient.</summary>
    internal void Run()
    {
        _state = State.Spent;
        s_depth++;
        try
        {
            while (_functions.Count > 0) RunLast();
            while (_postponed.TryDequeue(out Function? function)) Finish(function, GradientPart.Parameters);
        }
        finally
        {
            if (--s_depth == 0) s_completed?.Clear();
            // Only after an error: what is left is freed unrun.
            while (_postponed.TryDequeue(out Function? function)) Forget(function, ran: false);
            while (_functions.Count > 0) Forget(TakeLast(), ran: false);
        }
    }

    private void RunLast()
    {
        Function function = TakeLast();
        if (!_postpones || !function.InTwoParts || !function.IsReached)
        {
            Finish(function, GradientPart.All);
            return;
        }
        _postponed.Enqueue(function);
        function.Backward(new BackwardPass(function, GradientPart.Values));
    }

    private static void Finish(Function function, GradientPart part)
    {
        bool ran = false;
        try
        {
            if (function.IsReached) function.Backward(new BackwardPass(function, part));
            ran = true;
        }
        finally
        {
            Forget(function, ran);
        }
        if (s_depth == 1 && s_completed is { Count: > 0 }) TellCompleted(s_completed);
    }

    private static void TellCompleted(List<Variable> completed)
    {
        foreach (Variable leaf in completed)
            if (leaf.IsGradientComplete) leaf.GradientCompleted!(leaf);
        completed.Clear();
    }

    private Function TakeLast()
    {
        Function last = _functions[^1];
        _functions.RemoveAt(_functions.Count - 1);
        return last;
    }

    private static void Forget(Function function, bool ran)
    {
        function.Release();
        foreach (Variable output in function.Outputs) output.ZeroGradient();
        foreach (Variable input in function.Inputs)
        {
            if (!input.RequiresGradient) continue;
            input.EndUse();
            if (ran && input.IsGradientComplete && !(s_completed ??= []).Contains(input)) s_completed.Add(input);
        }
        function.Forget();
    }

    internal void HandleDisposed()
    {
        if (--_openHandles == 0 && !_isExplicit) Dispose();
    }

    /// <summary>Frees everything recorded: saved tensors, values, gradients of intermediate values.</summary>
    public void Dispose()
    {
        if (_state == State.Closed) return;
        _state = State.Closed;
        while (_functions.Count > 0) Forget(TakeLast(), ran: false);
        foreach (Variable variable in _variables)
        {
            variable.ReleaseValue();
            variable.ZeroGradient();
        }
        _variables.Clear();
        s_spare = (_functions, _variables);
        (_functions, _variables) = ([], []);
    }
}
