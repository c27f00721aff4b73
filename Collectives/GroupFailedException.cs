using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// A rank cannot go on because its group has ended: another rank failed, left, or called something else. On the other ranks this is an echo of the cause.
/// </summary>
public sealed class GroupFailedException : LaspException
{
    public GroupFailedException(string message) : base(message) { }

    public GroupFailedException(string message, Exception inner) : base(message, inner) { }
}
