using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace LaspNative.Runtime.Cpu;

/// <summary>
/// Brings an operand of a matrix product into the order in which <see cref="GemmKernel"/> reads it: panels of a few lines (rows of A, columns of B), each
/// stored [depth][panel], widened to the arithmetic type, the last one filled up with zeros.
/// </summary>
internal static unsafe class Packing
{
    /// <summary>Lines lie <paramref name="across"/> apart, the elements of a line <paramref name="along"/>; one of the two is 1.</summary>
    public static void Pack<T, A>(T* source, long across, long along, int lines, int depth, int panel, A* packed)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        for (int line = 0; line < lines; line += panel, packed += (long)panel * depth)
        {
            int width = Math.Min(panel, lines - line);
            if (width < panel) new Span<A>(packed, panel * depth).Clear();
            T* first = source + (line * across);
            if (across == 1) CopyRows(first, along, width, depth, panel, packed);
            else if (Sse.IsSupported && along == 1 && typeof(T) == typeof(float)) TransposeFloats((float*)first, across, width, depth, panel, (float*)packed);
            else Transpose(first, across, along, width, 0, depth, panel, packed);
        }
    }

    /// <summary>The panel's lines lie side by side: each depth is a run in memory.</summary>
    private static void CopyRows<T, A>(T* source, long along, int width, int depth, int panel, A* packed)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        for (int p = 0; p < depth; p++, source += along, packed += panel)
        {
            int i = 0;
            for (; i <= width - Vector512<A>.Count; i += Vector512<A>.Count) Element.Store(Element.Load<T, A>(source + i), packed + i);
            if (typeof(T) == typeof(A))
                for (; i <= width - Vector128<A>.Count; i += Vector128<A>.Count) Vector128.Store(Vector128.Load((A*)(source + i)), packed + i);
            for (; i < width; i++) packed[i] = Element.Widen<T, A>(source[i]);
        }
    }

    private static void Transpose<T, A>(T* source, long across, long along, int width, int start, int depth, int panel, A* packed)
        where T : unmanaged where A : unmanaged, IBinaryFloatingPointIeee754<A>
    {
        for (int line = 0; line < width; line++)
            for (long p = start; p < depth; p++) packed[(p * panel) + line] = Element.Widen<T, A>(source[(line * across) + (p * along)]);
    }

    /// <summary>Blocks of 4 lines by 4 elements turn in registers; what is left goes one by one.</summary>
    private static void TransposeFloats(float* source, long across, int width, int depth, int panel, float* packed)
    {
        int blocked = depth & ~3, line = 0;
        for (; line <= width - 4; line += 4)
        {
            float* row = source + (line * across);
            for (int p = 0; p < blocked; p += 4) Transpose4(row + p, across, packed + ((long)p * panel) + line, panel);
        }
        Transpose(source + (line * across), across, 1, width - line, 0, blocked, panel, packed + line);
        Transpose(source, across, 1, width, blocked, depth, panel, packed);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Transpose4(float* source, long across, float* target, int panel)
    {
        Vector128<float> r0 = Vector128.Load(source), r1 = Vector128.Load(source + across);
        Vector128<float> r2 = Vector128.Load(source + (2 * across)), r3 = Vector128.Load(source + (3 * across));
        Vector128<float> low01 = Sse.UnpackLow(r0, r1), high01 = Sse.UnpackHigh(r0, r1), low23 = Sse.UnpackLow(r2, r3), high23 = Sse.UnpackHigh(r2, r3);
        Sse.MoveLowToHigh(low01, low23).Store(target);
        Sse.MoveHighToLow(low23, low01).Store(target + panel);
        Sse.MoveLowToHigh(high01, high23).Store(target + (2 * panel));
        Sse.MoveHighToLow(high23, high01).Store(target + (3 * panel));
    }
}
