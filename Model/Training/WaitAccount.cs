using System.Diagnostics;
using LaspNative.Collectives;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Model;

/// <summary>
/// How long a rank stands still for messages, step by step: its thread on the CPU; on a GPU its compute stream, between events, so that the host waits for nothing.
/// A step's account is closed when all of it is queued and may be read any number of steps later.
/// </summary>
internal abstract class WaitAccount : IDisposable
{
    public static WaitAccount For(Device device) => device is CudaDevice gpu ? new OfStream(gpu) : new OfThread();

    /// <summary>What is waited for from here to <see cref="End"/> goes on the step's account. On a GPU the two marks hold up the compute stream for some 3 us, so what is waited for together is measured together.</summary>
    public abstract void Begin();

    public abstract void End();

    /// <summary>Waits for the work, on the step's account.</summary>
    public void Measure(CommunicationWork work)
    {
        Begin();
        work.Wait();
        End();
    }

    /// <summary>Waits for all ranks, on the step's account where that is the thread's.</summary>
    public abstract void MeasureBarrier(ICommunicator group);

    /// <summary>What comes now belongs to the next step.</summary>
    public abstract void EndStep();

    /// <summary>The oldest step that has ended and was not taken. On a GPU it waits until the step's last message has come: take a step when something behind it is known to have run.</summary>
    public abstract TimeSpan TakeStep();

    public virtual void Dispose() { }

    private sealed class OfThread : WaitAccount
    {
        private readonly Queue<long> _ended = [];
        private long _ticks;
        private long _start;

        public override void Begin() => _start = Stopwatch.GetTimestamp();

        public override void End() => _ticks += Stopwatch.GetTimestamp() - _start;

        public override void MeasureBarrier(ICommunicator group)
        {
            Begin();
            group.Barrier();
            End();
        }

        public override void EndStep()
        {
            _ended.Enqueue(_ticks);
            _ticks = 0;
        }

        public override TimeSpan TakeStep() => Stopwatch.GetElapsedTime(0, _ended.Dequeue());
    }

    private sealed class OfStream(CudaDevice device) : WaitAccount
    {
        private readonly Queue<List<(CudaEvent Start, CudaEvent End)>> _ended = [];
        private readonly Stack<CudaEvent> _idle = [];
        private readonly Stack<List<(CudaEvent Start, CudaEvent End)>> _idleLists = [];
        private List<(CudaEvent Start, CudaEvent End)> _waits = [];
        private CudaEvent? _start;

        public override void Begin()
        {
            _start ??= Idle(); // where the wait before has failed, its mark is there still
            _start.Record(device.Stream);
        }

        public override void End()
        {
            CudaEvent end = Idle();
            end.Record(device.Stream);
            _waits.Add((_start!, end));
            _start = null;
        }

        public override void MeasureBarrier(ICommunicator group) => group.Barrier();

        public override void EndStep()
        {
            _ended.Enqueue(_waits);
            _waits = _idleLists.TryPop(out List<(CudaEvent Start, CudaEvent End)>? list) ? list : [];
        }

        public override TimeSpan TakeStep()
        {
            List<(CudaEvent Start, CudaEvent End)> waits = _ended.Dequeue();
            double milliseconds = 0;
            if (waits.Count > 0 && !waits[^1].End.IsComplete) waits[^1].End.Synchronize();
            foreach ((CudaEvent start, CudaEvent end) in waits)
            {
                milliseconds += CudaEvent.ElapsedMilliseconds(start, end);
                _idle.Push(start);
                _idle.Push(end);
            }
            waits.Clear();
            _idleLists.Push(waits);
            return TimeSpan.FromMilliseconds(milliseconds);
        }

        private CudaEvent Idle() => _idle.TryPop(out CudaEvent? idle) ? idle : new CudaEvent(device.Context, timing: true);

        public override void Dispose()
        {
            foreach ((CudaEvent start, CudaEvent end) in _ended.Append(_waits).SelectMany(w => w))
            {
                start.Dispose();
                end.Dispose();
            }
            foreach (CudaEvent mark in _idle) mark.Dispose();
            _start?.Dispose(); // of a wait that has failed
        }
    }
}
