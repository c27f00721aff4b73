using System.Text.Json;
using System.Text.Json.Serialization;

namespace LaspNative.Model;

/// <summary>What one training step did; one line of metrics.jsonl. Numbers are written with all their digits.</summary>
/// <param name="Step">From 1.</param>
/// <param name="Loss">Mean over all tokens of the global batch that have a label, in nats.</param>
/// <param name="GradientNorm">Global norm before clipping.</param>
/// <param name="ModelTeraFlops">Of the model's formula (<see cref="LinearLlamaConfig.FlopsPerToken"/>), per second, over all ranks.</param>
/// <param name="PeakMemoryBytes">Most bytes that rank 0's device held at once since the run's start.</param>
/// <param name="ExposedCommunication">Share of the step in which rank 0 stood waiting for messages: its thread, or on a GPU its compute stream.</param>
public sealed record StepRecord(
    [property: JsonPropertyName("step")] long Step,
    [property: JsonPropertyName("loss")] double Loss,
    [property: JsonPropertyName("grad_norm")] double GradientNorm,
    [property: JsonPropertyName("lr")] double LearningRate,
    [property: JsonPropertyName("tokens_per_second")] double TokensPerSecond,
    [property: JsonPropertyName("model_tflops")] double ModelTeraFlops,
    [property: JsonPropertyName("peak_memory_bytes")] long PeakMemoryBytes,
    [property: JsonPropertyName("exposed_communication")] double ExposedCommunication,
    [property: JsonPropertyName("seconds")] double Seconds)
{
    /// <summary>One line of JSON.</summary>
    public string ToJson() => JsonSerializer.Serialize(this);
}
