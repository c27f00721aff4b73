using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>
/// y = region(x), where every row of y depends on its own row of x only: computed for a chunk of rows at a time, so that what the region makes on the way is there for one chunk only,
/// in forward and again in backward, where its output is not read (<see cref="RegionRun.Replay"/>). Saves x. The gradients of the region's parameters are summed chunk by chunk, in order.
/// </summary>
public sealed class RowChunks : Function
{
    private readonly Func<Variable, RegionRun, Variable> _region;
    private readonly SavedValue _x;
    private readonly long _chunk;

    private RowChunks(Func<Variable, RegionRun, Variable> region, Variable x, long chunk)
    {
        (_region, _chunk) = (region, chunk);
        _x = Save(x);
    }

    /// <param name="x">[.., C].</param>
    /// <param name="chunk">Rows at once, at least 1.</param>
    /// <param name="region">[rows, C] to [rows, C]. Everything else that it reads must be unchanged when backward runs it again.</param>
    /// <param name="run">In a replay y is left unwritten: it must be an output of the recomputed region (<see cref="Recompute"/>), which nobody reads.</param>
    /// <returns>[.., C].</returns>
    public static Variable Apply(Variable x, long chunk, Func<Variable, RegionRun, Variable> region, RegionRun run = RegionRun.Forward)
    {
        ArgumentNullException.ThrowIfNull(x);
        ArgumentNullException.ThrowIfNull(region);
        if (x.Shape.Rank == 0 || chunk < 1) throw new LaspException($"{x.Shape} cannot be computed in chunks of {chunk} rows; it is [.., C] and a chunk has 1 row or more");
        Tensor y = Tensor.Empty(x.Shape, x.DType, x.Device);
        using Tensor xRows = Rows(x.Value), yRows = Rows(y);
        using Tensor sources = xRows.Slice(0, run == RegionRun.Forward ? xRows.Shape[0] : 0);
        try
        {
            IReadOnlyList<Variable> parameters = Fill(sources, yRows, chunk, region);
            return new RowChunks(region, x, chunk).Record([x, .. parameters], y);
        }
        catch
        {
            y.Dispose();
            throw;
        }
    }

    /// <summary>Writes the rows of y that belong to those of x. Returns the parameters that the region reads, also for no rows.</summary>
    private static IReadOnlyList<Variable> Fill(Tensor x, Tensor y, long chunk, Func<Variable, RegionRun, Variable> region)
    {
        IReadOnlyList<Variable> parameters = [];
        foreach ((long start, long count) in Cut(x.Shape[0], chunk))
        {
            using Tape tape = Tape.WithoutGradients();
            Variable part = tape.Constant(x.Slice(start, count));
            Copy(region(part, RegionRun.Forward).Value, y, start);
            parameters = tape.Parameters;
        }
        return parameters;
    }

    /// <summary>The chunks of a number of rows; of none, an empty one, so that parameters get their zeros.</summary>
    private static IEnumerable<(long Start, long Count)> Cut(long rows, long chunk)
    {
        for (long start = 0; start == 0 || start < rows; start += chunk) yield return (start, Math.Min(chunk, rows - start));
    }

    protected internal override void Backward(BackwardPass pass)
    {
        using Tensor? dx = pass.Wants(0) ? pass.Empty(0) : null;
        using Tensor xRows = Rows(_x.Tensor), dyRows = Rows(pass.RequiredOutput(0));
        using Tensor? dxRows = dx is null ? null : Rows(dx);
        foreach ((long start, long count) in Cut(xRows.Shape[0], _chunk))
        {
            using var tape = new Tape();
            Variable part = tape.Enter(xRows.Slice(start, count), pass.Wants(0));
            using Variable y = _region(part, RegionRun.Replay);
            using Tensor dy = dyRows.Slice(start, count);
            y.Backward(dy);
            if (dxRows is not null) Copy(part.Gradient!, dxRows, start);
        }
        if (dx is not null) pass.Give(0, dx.Share());
    }

    private static Tensor Rows(Tensor x) => x.View([x.Shape.Rows, x.Shape[-1]]);

    private static void Copy(Tensor rows, Tensor all, long start)
    {
        using Tensor place = all.Slice(start, rows.Shape[0]);
        if (rows.Shape != place.Shape) throw new LaspException($"a region over rows of shape {place.Shape} made {rows.Shape}; it must keep the shape");
        if (rows.Count > 0) rows.Device.Copy(rows.Pointer, place.Pointer, rows.Bytes);
    }
}
