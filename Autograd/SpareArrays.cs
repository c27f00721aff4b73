namespace LaspNative.Autograd;

/// <summary>
/// Short arrays that functions need while they are on a tape. Each thread keeps those that were given back, emptied, by length, for the functions to come; long ones, which are rare, are left to the
/// garbage collector.
/// </summary>
internal static class SpareArrays<T> where T : class
{
    private const int Longest = 8;

    /// <summary>Of one length. Where one thread records and another disposes, the second would keep more with every step.</summary>
    private const int Most = 1 << 14;

    [ThreadStatic]
    private static Stack<T?[]>?[]? s_spare;

    /// <summary>An array of nulls, the caller's until <see cref="Return"/>.</summary>
    public static T?[] Take(int length)
    {
        if (length == 0) return [];
        return length <= Longest && s_spare?[length] is { Count: > 0 } spare ? spare.Pop() : new T?[length];
    }

    /// <summary>Takes an array back that nobody reads any more.</summary>
    public static void Return(T?[] array)
    {
        if (array.Length is 0 or > Longest) return;
        Array.Clear(array);
        Stack<T?[]>?[] spare = s_spare ??= new Stack<T?[]>?[Longest + 1];
        Stack<T?[]> same = spare[array.Length] ??= new Stack<T?[]>();
        if (same.Count < Most) same.Push(array);
    }
}
