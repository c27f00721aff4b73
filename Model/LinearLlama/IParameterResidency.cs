using LaspNative.Autograd;

namespace LaspNative.Model;

/// <summary>
/// Sees to it that parameters are there when the model reads them, in forward and again in backward, where they are not always (ZeRO-3) or still on their way (ZeRO-1 and 2). The model says where it is;
/// what it passes along is a value on the step's tape, to which the same is tied for backward.
/// </summary>
internal interface IParameterResidency
{
    /// <summary>Before anything else: the parameters outside the blocks are read from here to the end of backward.</summary>
    void EnterModel(Variable ids);

    void EnterBlock(int block, Variable stream);

    void LeaveBlock(int block, Variable stream);
}
