namespace LaspNative.Autograd;

/// <summary>A point of the tape, without values: backward runs an action when it comes here (<see cref="Tape.WhenBackward"/>).</summary>
internal sealed class BackwardPoint : Function
{
    private readonly Action _action;

    public BackwardPoint(Action action)
    {
        _action = action;
        TakeSequence();
    }

    internal override bool IsReached => true;

    protected internal override void Backward(BackwardPass pass) => _action();
}
