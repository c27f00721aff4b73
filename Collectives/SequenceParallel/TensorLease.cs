using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>A tensor for the length of a call: somebody else's, or one made for it and freed with this. The default holds none.</summary>
internal readonly struct TensorLease : IDisposable
{
    private readonly bool _isOwn;

    private TensorLease(Tensor? tensor, bool isOwn) => (OrNull, _isOwn) = (tensor, isOwn);

    public Tensor? OrNull { get; }

    public static TensorLease Borrow(Tensor? tensor) => new(tensor, isOwn: false);

    /// <summary>Takes the tensor over.</summary>
    public static TensorLease Own(Tensor? tensor) => new(tensor, isOwn: true);

    public static implicit operator Tensor(TensorLease lease) => lease.OrNull!;

    public void Dispose()
    {
        if (_isOwn) OrNull?.Dispose();
    }
}
