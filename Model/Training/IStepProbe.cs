namespace LaspNative.Model;

/// <summary>Looks at a run from every rank, on the rank's own thread.</summary>
internal interface IStepProbe
{
    /// <summary>The step's first work is about to be queued; on a GPU, work of the steps before may still be under way.</summary>
    void Before(long step);
}
