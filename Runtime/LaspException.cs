namespace LaspNative.Runtime;

/// <summary>
/// An error that a user can act on. The message is ONE line: what is wrong, with which value, and what to do.
/// The command line prints it as it is; everything else that escapes is a defect of ours.
/// </summary>
public class LaspException : Exception
{
    public LaspException(string message) : base(message) { }

    public LaspException(string message, Exception inner) : base(message, inner) { }
}
